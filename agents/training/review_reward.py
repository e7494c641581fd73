"""The reward of the film-review task, as in RLHF: a model fitted to comparisons of the base policy's own texts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rewards.fitting.preference_fitting import fit_preference_model
from rewards.preferences.simulated_annotators import Annotator
from textrl_env import Episode, FileTokenizer, TextTask
from textrl_env.reward_model import NoReward
from textrl_env.tasks.review.annotator import DEFAULT_TEMPERATURE
from textrl_env.utils.folders import cache_folder

from ..evaluation.policy_texts import make_policy, write_texts
from ..utils.contents import contents_hash
from ..utils.run_folder import fingerprint, versions

COMPARISONS = 3000


def learned_reward(task: TextTask, base: str, seed: int = 0) -> Path:
    """Return the folder of the reward model, and build it first if it is not there.

    The base policy writes two texts to each of 3,000 prompts, an annotator with the task's gold taste compares them with Boltzmann noise,
    and n-grams are fitted to the answers; the scores have mean 0 and standard deviation 1 on the base policy's texts.

    Args:
        task: With a gold score and a tokenizer of a file.
        base: Folder of the base policy.
        seed: Of texts and noise.
    """
    inputs = ["learned", contents_hash(base), COMPARISONS, DEFAULT_TEMPERATURE, seed, versions()["textrl-env"]]
    folder = cache_folder() / "rewards" / fingerprint(inputs)
    if folder.is_dir():
        return folder
    assert task.gold is not None and isinstance(task.tokenizer, FileTokenizer)
    ordered = dataclasses.replace(task, prompt_order="sequential")
    policy = make_policy(ordered, base)
    one, two = (write_texts(policy, ordered, COMPARISONS, reward=NoReward(), seed=2 * seed + i) for i in range(2))
    annotator = Annotator(task.gold, DEFAULT_TEMPERATURE, seed=seed)
    answers = annotator.compare(list(zip(one.prompts, one.responses, two.responses, strict=True)))
    model, _ = fit_preference_model(answers, tokenizer=task.tokenizer, trunk=None, seed=seed)
    model.normalise([Episode.from_text(p, r) for p, r in zip(one.prompts[:500], one.responses[:500], strict=True)])
    model.save(folder)
    return folder
