"""Base policies: built once from a task's recipe, then found by the hash of everything they depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from textrl_env import TextTask
from textrl_env.tokenizer import ends_of
from textrl_env.utils.folders import cache_folder

from ..algorithms.sft import SFT
from ..distributed.engine import Engine
from ..distributed.process_group import ranks
from ..distributed.ranks import Ranks
from ..utils.run_folder import fingerprint, versions


def base_policy(task: TextTask, progress_bar: bool = False) -> Path:
    """Return the folder of the task's base policy, and pretrain it first if it is not there; of several ranks one does, and all wait.

    Raises:
        ValueError: The task names no recipe.
    """
    if task.recipe is None:
        raise ValueError("this task names no recipe for a base policy: pass a model of your own")
    recipe = task.recipe
    texts = recipe.corpus()
    folder = cache_folder() / "bases" / _fingerprint(task, texts)
    with ranks().main_first():
        if not folder.is_dir():
            trainer = SFT(
                dict(recipe.model), task.tokenizer, learning_rate=recipe.learning_rate, batch_size=recipe.batch_size, seed=recipe.seed
            )
            trainer.engine = Engine(Ranks())  # in this process alone: the same weights, however many wait for them
            trainer.learn(recipe.texts(), recipe.steps, progress_bar, title="pretrain the base policy")
            trainer.save(folder)
    return folder


def _fingerprint(task: TextTask, texts: list[tuple[str, str]]) -> str:
    assert task.recipe is not None
    recipe = task.recipe
    plain = [dict(recipe.model), recipe.steps, recipe.batch_size, recipe.learning_rate, recipe.seed, texts, versions()["textrl-env"]]
    if recipe.image is not None:
        plain.append([hashlib.sha256(recipe.image(text).tobytes()).hexdigest() for text, _ in texts])
    # What a tokenizer does to the texts, and how it ends them, is all that matters of it
    plain += [task.tokenizer.encode_batch(list(column)) for column in zip(*texts, strict=True)]
    return fingerprint([*plain, list(ends_of(task.tokenizer)), task.tokenizer.vocab_size])
