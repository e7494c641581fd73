"""Which settings `textrl tune` varies, and in which ranges."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..benchmark.suites import family, is_exact
from .flags import Tune

_RATE = ("learning_rate", "log", 1e-4, 5e-3)
_WRITTEN = (_RATE, ("n_episodes", "one of", 32, 64, 128))
_CLIPPED = (*_WRITTEN, ("batch_size", "one of", 16, 32, 64), ("n_epochs", "one of", 1, 2, 4), ("beta", "log", 0.01, 0.3))
_OFFLINE = (("learning_rate", "log", 2e-5, 1e-3), ("epochs", "one of", 1, 3, 6))

SPACE: Mapping[str, tuple[tuple[Any, ...], ...]] = {
    **dict.fromkeys(("ppo", "maskable-ppo", "nlpo"), (*_CLIPPED, ("clip_range", "linear", 0.1, 0.3), ("gae_lambda", "linear", 0.9, 1.0))),
    **dict.fromkeys(("a2c", "trpo"), (*_WRITTEN, ("beta", "log", 0.01, 0.3), ("gae_lambda", "linear", 0.9, 1.0))),
    **dict.fromkeys(("rloo", "grpo", "dr-grpo", "dapo", "gspo", "gmpo", "cispo"), _CLIPPED),
    **dict.fromkeys(("reinforce", "reinforce++", "reinforce++-baseline"), _CLIPPED),
    "online-dpo": (*_CLIPPED[:-1], ("beta", "log", 0.03, 1.0)),
    **dict.fromkeys(("dpo", "ipo", "robust-dpo", "kto"), (*_OFFLINE, ("beta", "log", 0.03, 1.0))),
    "simpo": (*_OFFLINE, ("beta", "log", 0.5, 10.0), ("gamma", "linear", 0.0, 2.0)),
    "sft": (("learning_rate", "log", 1e-4, 5e-3), ("epochs", "one of", 1, 3, 6)),
    "expert-iteration": (("learning_rate", "log", 1e-4, 5e-3), ("n", "one of", 2, 4, 8)),
}


def _space(config: Tune) -> list[tuple[Any, ...]]:
    """Return what is tried; on exact tasks beta belongs to the task."""
    return [row for row in SPACE[config.algo] if not (row[0] == "beta" and is_exact(config.task))]


def sampler(config: Tune, number: int) -> Any:
    """Return the sampler of a trial, given its number in the search.

    Each trial draws from its own stream: one that went on from the seed of the search would draw its first settings again, and all
    tasks would try the same.
    """
    import optuna

    task = zlib.crc32(family(config.task).encode())
    seed = int(np.random.SeedSequence([config.seed, task, number]).generate_state(1)[0])
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # Constant liar: settings that are being tried elsewhere count as bad, so that no two workers try the same.
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def suggest(config: Tune, trial: Any) -> dict[str, Any]:
    """Return the settings that an Optuna trial tries."""
    trial.study.sampler = sampler(config, trial.number)
    return {name: _suggest(trial, name, kind, values) for name, kind, *values in _space(config)}


def _suggest(trial: Any, name: str, kind: str, values: list[Any]) -> Any:
    if kind == "one of":
        return trial.suggest_categorical(name, values)
    return trial.suggest_float(name, *values, log=kind == "log")
