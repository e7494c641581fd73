"""What a text was paid, apart: the terms of a sum of rewards, for estimators that compare the texts of a group by each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from textrl_env.reward_model import RewardModel


class RewardParts(NamedTuple):
    """The K - 1 terms of a sum, and last what the environment paid besides, for S texts.

    Attributes:
        values: Shape (K, S), float64; NaN: the term does not apply to the text.
        weights: Of the terms in the sum, 1 for the last part, shape (K,).
    """

    values: np.ndarray
    weights: np.ndarray


def weights_of(model: RewardModel) -> Mapping[str, float]:
    """Return the weights of a sum's terms.

    Raises:
        ValueError: The reward model is no sum.
    """
    weights = getattr(model, "weights", None)
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"estimator='gdpo' compares texts by each term of a sum, and the reward is {model!r}: make it a sum, "
            '{"name": "sum", "terms": {...}, "weights": {...}}, or take estimator="grpo"'
        )
    return weights


def reward_parts(model: RewardModel, infos: Sequence[Mapping[str, Any]], paid: np.ndarray) -> RewardParts:
    """Return the parts of what texts were paid.

    What was paid besides the score (penalties of the task, rewards of steps, the score of texts that the reward model did not see) is one
    part more.

    Args:
        model: A sum of rewards.
        infos: The environment's last info of each text.
        paid: What reached the agent of each text, shape (S,).

    Raises:
        ValueError: The reward model is no sum, or a wrapper changes the rewards.
    """
    weights = weights_of(model)
    told = np.array([info["return"] for info in infos])  # (S,)
    if not np.allclose(paid, told, 1e-3, 1e-3):
        worst = int(np.abs(paid - told).argmax())
        raise ValueError(
            f"a text whose rewards are {told[worst]:g} was paid {paid[worst]:g}: a wrapper of the environment changes rewards, and "
            "estimator='gdpo', which gives each term a scale of its own, would not see it; leave the wrapper out"
        )
    terms = [[info.get("reward_terms", {}).get(name) for info in infos] for name in weights]
    seen = np.array([info["score"] * ("reward_terms" in info) for info in infos])  # (S,)
    return RewardParts(np.array([*terms, told - seen], float), np.array([*weights.values(), 1.0]))
