"""Which settings an algorithm takes, and the values that suit models of about a million parameters, or the size that is given."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rewards.models.suited_rate import MILLION, suited_rate
from textrl_env import BaseRecipe

from ..algorithms.registry import ALGORITHMS
from .settings import OFFLINE, OPTIONS, RATES, STEPS, PolicyTraining


def default_settings(algo: str, recipe: BaseRecipe | None = None, parameters: int = MILLION, adapters: bool = False) -> dict[str, Any]:
    """Return the settings that an algorithm takes, arguments of `PolicyTraining` or `OfflineTraining`, with their defaults.

    Args:
        algo: Name of the algorithm.
        recipe: Of the task whose own corpus `sft` learns from: steps and learning rate are those of its base policy.
        parameters: Of the model that is trained, which the learning rate is made to suit, see `rewards.models.suited_rate`.
        adapters: Whether only adapters of it are trained.
    """
    settings = _for_a_million(algo, recipe)
    return {**settings, "learning_rate": suited_rate(settings["learning_rate"], parameters, adapters)}


def _for_a_million(algo: str, recipe: BaseRecipe | None) -> dict[str, Any]:
    if algo in OFFLINE:
        settings: dict[str, Any] = {"steps": STEPS[algo], "learning_rate": RATES[algo], "seed": 0}
        if recipe is not None:
            settings |= {"steps": recipe.steps, "learning_rate": recipe.learning_rate}
        return {**settings, **OPTIONS.get(algo, {})}
    settings = asdict(PolicyTraining())
    if not ALGORITHMS[algo].minibatches:
        del settings["batch_size"]
    if "beta" in ALGORITHMS[algo].settings:
        del settings["kl_target"]  # it would steer an adaptive beta; this algorithm's is fixed
    return settings
