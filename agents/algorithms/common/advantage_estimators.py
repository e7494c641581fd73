"""Estimators of the advantages of a rollout's tokens, in which critic-free methods differ.

Returns are those that the buffer holds: with KL in the reward, a text's return is score - beta * sum log(pi / pi_ref), and an
estimator that is unbiased for it follows the exact gradient of the KL-regularised return.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...distributed.ranks import Ranks
from ...rollouts.reward_scaling import whiten
from .reward_parts import RewardParts


class Rollout(NamedTuple):
    """Input of an estimator: S texts with N tokens.

    Attributes:
        rewards: Of each token, shape (N,).
        offsets: Where each text's tokens begin, and N, shape (S + 1,).
        groups: Number of each text's prompt, shape (S,).
        gae: Generalised advantages, if there is a critic, shape (N,).
        average: Moving average of the returns of earlier rollouts.
        ranks: Which have texts of their own, in whole groups.
        parts: What the texts were paid for, apart; None unless `gdpo` asks.
    """

    rewards: np.ndarray
    offsets: np.ndarray
    groups: np.ndarray
    gae: np.ndarray
    average: float
    ranks: Ranks = Ranks()
    parts: RewardParts | None = None

    @property
    def returns(self) -> np.ndarray:
        """Return of each text, shape (S,), float64."""
        return np.add.reduceat(self.rewards, self.offsets[:-1], dtype=np.float64)

    @property
    def to_go(self) -> np.ndarray:
        """Sum of the rewards from each token on, shape (N,), float64; a sum over the whole rollout would round what single texts add."""
        texts = np.split(self.rewards, self.offsets[1:-1])
        return np.concatenate([np.cumsum(text[::-1], dtype=np.float64)[::-1] for text in texts])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, shape (S,)."""
        return np.diff(self.offsets)

    def spread(self, per_text: np.ndarray) -> np.ndarray:
        """Give each token the number of its text: (S,) to (N,)."""
        return np.repeat(per_text, self.lengths)

    def group_sums(self, per_text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return for each text the sum over its group and the group's size, shape (S,) each."""
        size = int(self.groups.max()) + 1
        sums, counts = np.bincount(self.groups, per_text, size), np.bincount(self.groups, minlength=size)
        return sums[self.groups], counts[self.groups]

    def standardised(self, per_text: np.ndarray) -> np.ndarray:
        """Return the differences to the mean of each group, divided by its deviation; 0 for NaN, which no group counts, shape (S,)."""
        applies = ~np.isnan(per_text)
        sums, _ = self.group_sums(np.where(applies, per_text, 0.0))
        counts, _ = self.group_sums(applies)
        deviation = np.where(applies, per_text - sums / np.maximum(counts, 1), 0.0)
        squares, _ = self.group_sums(deviation**2)
        return deviation / (np.sqrt(squares / np.maximum(counts - 1, 1)) + 1e-4)


def gae(rollout: Rollout) -> np.ndarray:
    """Schulman et al. 2016, with the buffer's critic; PPO's."""
    return rollout.gae


def reinforce(rollout: Rollout) -> np.ndarray:
    """Reward to go minus a moving average of earlier returns (Williams 1992): unbiased."""
    return rollout.to_go - rollout.average


def rloo(rollout: Rollout) -> np.ndarray:
    """Return minus the mean return of the group's other texts (Kool et al. 2019; Ahmadian et al. 2024): unbiased."""
    returns = rollout.returns
    sums, counts = rollout.group_sums(returns)
    return rollout.spread((returns - sums / counts) * counts / (counts - 1))


def group_mean(rollout: Rollout) -> np.ndarray:
    """Return minus the group's mean (Dr. GRPO, Liu et al. 2025): the unbiased one times (k - 1) / k."""
    returns = rollout.returns
    sums, counts = rollout.group_sums(returns)
    return rollout.spread(returns - sums / counts)


def grpo(rollout: Rollout) -> np.ndarray:
    """The same divided by the group's standard deviation (Shao et al. 2024): another objective, for easy and hard prompts count more."""
    return rollout.spread(rollout.standardised(rollout.returns))


def gdpo(rollout: Rollout) -> np.ndarray:
    """The same for each term of a sum of rewards, then weighted, added and whitened over the rollout's texts (Liu et al. 2026).

    "GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL Optimization".  A text to which a term does not
    apply (None) has no part in it, nor in its group's mean and deviation.  What the environment pays besides the sum is a term more.
    """
    assert rollout.parts is not None
    return rollout.spread(whiten(rollout.parts.weights @ [rollout.standardised(values) for values in rollout.parts.values], rollout.ranks))


def reinforce_plus_plus(rollout: Rollout) -> np.ndarray:
    """Reward to go, whitened over the rollout (Hu et al. 2025): the direction is unbiased up to the batch's own mean."""
    return whiten(rollout.to_go, rollout.ranks)


def reinforce_plus_plus_baseline(rollout: Rollout) -> np.ndarray:
    """Return minus the group's mean, then whitened over the rollout (Hu et al. 2025)."""
    return whiten(group_mean(rollout), rollout.ranks)


def none(rollout: Rollout) -> np.ndarray:
    """0: the score teaches nothing, and what the loss adds to the policy gradient is all that is learned."""
    return np.zeros(len(rollout.rewards))


ESTIMATORS: dict[str, Callable[[Rollout], np.ndarray]] = {
    "gae": gae,
    "reinforce": reinforce,
    "rloo": rloo,
    "group_mean": group_mean,
    "grpo": grpo,
    "gdpo": gdpo,
    "reinforce++": reinforce_plus_plus,
    "reinforce++_baseline": reinforce_plus_plus_baseline,
    "none": none,
}
GROUPED = ("rloo", "group_mean", "grpo", "gdpo", "reinforce++_baseline")
