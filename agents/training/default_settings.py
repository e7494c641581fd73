"""Which settings an algorithm takes, and the values that suit models of about a million parameters."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from textrl_env import BaseRecipe

from ..algorithms.registry import ALGORITHMS
from .settings import OFFLINE, RATES, STEPS, PolicyTraining


def default_settings(algo: str, recipe: BaseRecipe | None = None) -> dict[str, Any]:
    """Return the settings that an algorithm takes, arguments of `PolicyTraining` or `OfflineTraining`, with their defaults.

    Args:
        algo: Name of the algorithm.
        recipe: Of the task whose own corpus `sft` learns from: steps and learning rate are those of its base policy.
    """
    if algo in OFFLINE:
        settings: dict[str, Any] = {"steps": STEPS[algo], "learning_rate": RATES[algo], "seed": 0}
        if recipe is not None:
            settings |= {"steps": recipe.steps, "learning_rate": recipe.learning_rate}
        return {**settings, "beta": 0.1} if algo in ("dpo", "ipo") else settings
    settings = asdict(PolicyTraining())
    if not ALGORITHMS[algo].minibatches:
        del settings["batch_size"]
    if "beta" in ALGORITHMS[algo].settings:
        del settings["kl_target"]  # it would steer an adaptive beta; this algorithm's is fixed
    return settings
