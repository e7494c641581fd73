"""A reward model fitted to a simulated annotator's comparisons of a task's texts; it is built once and cached by their hash."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from textrl_env.episode import Episode
from textrl_env.task import TextTask
from textrl_env.tasks.registry import make_task
from textrl_env.utils.folders import cache_folder

from ..models.preference_model import PreferenceRewardModel
from ..preferences.preference import Preference
from ..preferences.simulated_annotators import Annotator, Comparison
from .preference_fitting import fit_preference_model


def fitted_reward(task: str, annotator: Mapping[str, Any] | None = None, comparisons: int = 1000, seed: int = 0) -> PreferenceRewardModel:
    """Build the registry's `fitted`: n-grams, fitted to comparisons of texts from the task's corpus by an annotator with its gold taste.

    Its scores have mean 0 and standard deviation 1 on these texts.

    Args:
        task: Name of a task with a corpus and a gold score.
        annotator: Settings of `Annotator`, such as `{"temperature": 0.1, "flip": 0.2}`.
        comparisons: How many.
        seed: Of which texts are compared, and of the noise.

    Raises:
        ValueError: The task has no corpus, no gold score, or too few texts to the same prompt.
    """
    world = make_task(task)
    if world.gold is None or world.recipe is None:
        raise ValueError(f"task {task!r} has no gold score or no corpus: comparisons need both")
    texts = world.recipe.corpus()
    drawn = _comparisons(texts, comparisons, seed)
    if len(drawn) < comparisons:
        raise ValueError(f"the corpus of task {task!r} has {len(drawn)} pairs of different texts to one prompt, comparisons={comparisons}")
    answers = Annotator(world.gold, **(annotator or {}), seed=seed).compare(drawn)
    folder = cache_folder() / "rewards" / _hash(answers)
    if not folder.is_dir():
        _fit(answers, world, texts, seed).save(folder)
    return PreferenceRewardModel.load(folder)


def _comparisons(texts: Sequence[tuple[str, str]], number: int, seed: int) -> list[Comparison]:
    """Draw pairs of different responses to the same prompt, in random order."""
    by_prompt: dict[str, dict[str, None]] = defaultdict(dict)
    for prompt, response in texts:
        by_prompt[prompt][response] = None
    pairs = [(prompt, a, b) for prompt, own in by_prompt.items() for a, b in combinations(own, 2)]
    rng = np.random.default_rng(seed)
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[:number]]
    return [(p, a, b) if first else (p, b, a) for (p, a, b), first in zip(chosen, rng.random(len(chosen)) < 0.5, strict=True)]


def _fit(answers: list[Preference], task: TextTask, texts: Sequence[tuple[str, str]], seed: int) -> PreferenceRewardModel:
    model, _ = fit_preference_model(answers, tokenizer=task.tokenizer, trunk=None, seed=seed)
    model.normalise([Episode.from_text(prompt, response) for prompt, response in texts[:1000]])
    return model


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:16]
