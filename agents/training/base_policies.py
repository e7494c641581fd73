"""Base policies: built once from a task's recipe, then found by the hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from textrl_env import TextTask
from textrl_env.utils.folders import cache_folder

from ..algorithms.sft import SFT
from ..distributed.process_group import ranks


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
            trainer.learn(texts, recipe.steps, progress_bar, title="pretrain the base policy")
            trainer.save(folder)
    return folder


def _fingerprint(task: TextTask, texts: list[tuple[str, str]]) -> str:
    assert task.recipe is not None
    recipe = task.recipe
    plain = [dict(recipe.model), recipe.steps, recipe.batch_size, recipe.learning_rate, recipe.seed, texts]
    # What a tokenizer does to the texts is all that matters of it.
    plain.append(task.tokenizer.encode_batch([p + r for p, r in texts[:200]]))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
