"""Numbers on a common scale: scores divided by their running standard deviation and clipped, and whitening."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..distributed.ranks import Ranks

_ALONE = Ranks()


class Moments(NamedTuple):
    """Of numbers that are dealt to ranks: how many there are, their mean in their precision, and the sum of squared differences to it."""

    number: int
    mean: Any
    squares: float

    @property
    def variance(self) -> Any:
        """Mean of the squared differences, in the numbers' own precision."""
        return type(self.mean)(self.squares / self.number)


def moments(values: np.ndarray, ranks: Ranks = _ALONE) -> Moments:
    """Return the moments of all ranks' values; of one process to the digit what NumPy's `mean` and `var` return."""
    number, total = ranks.sums([len(values), values.sum()])
    mean = values.dtype.type(total / number)
    return Moments(int(number), mean, float(ranks.sums(((values - mean) ** 2).sum())))


def whiten(values: np.ndarray, ranks: Ranks = _ALONE) -> np.ndarray:
    """Return the values such that those of all ranks have mean 0 and variance 1; all 0 where they differ by rounding only.

    A single value stays as it is, as in SB3's PPO: it has no variance, and nothing would be learned from its difference to itself.
    """
    of_all = moments(values, ranks)
    if of_all.number < 2:
        return values
    centred = values - of_all.mean
    if ranks.numbers(np.abs(centred).max()).max() <= 1e-6 * abs(of_all.mean):
        return np.zeros_like(values)
    return centred / np.sqrt(of_all.variance + 1e-8)


def whiten_returns(rewards: np.ndarray, offsets: np.ndarray, ranks: Ranks = _ALONE) -> np.ndarray:
    """Return the rewards of tokens such that the returns of texts have variance 1, and the mean they have; equal returns stay.

    All tokens are divided by the deviation of the returns, and the last of each text takes what keeps the mean.  To whiten single
    tokens, as Ziegler et al. (2019) do with texts of one length, would pay a share of the mean for every token: it would pay for length.

    Args:
        rewards: Shape (N,).
        offsets: Where each text's tokens begin, and N, shape (S + 1,).
        ranks: Which have texts of their own.
    """
    returns = np.add.reduceat(rewards, offsets[:-1], dtype=np.float64)  # (S,)
    of_all = moments(returns, ranks)
    deviation = np.sqrt(of_all.variance)
    if deviation <= 1e-6 * ranks.numbers(np.abs(returns).max()).max():  # rounding of float32
        return rewards
    scaled = rewards / deviation  # (N,)
    scaled[offsets[1:] - 1] += of_all.mean * (1 - 1 / deviation)
    return scaled


class ScoreScale:
    """Divides by the standard deviation of all scores so far; their mean stays, for it is the same for every text of a prompt.

    Only needed for rewards without bounds, such as the logits of a classifier: beta then means the same whatever their scale.

    Args:
        norm_reward: Whether to divide; the name is that of SB3's `VecNormalize`, which scales steps and not texts.
        clip_reward: Largest absolute value that passes, after the division; None: any.

    Raises:
        ValueError: `clip_reward` is not positive.
    """

    __module__ = "agents"

    def __init__(self, norm_reward: bool = False, clip_reward: float | None = None) -> None:
        if clip_reward is not None and not clip_reward > 0:
            raise ValueError(f"clip_reward={clip_reward}: must be positive, or None")
        self.norm_reward, self.clip_reward = norm_reward, clip_reward
        self.count, self.mean, self.squares = 0, 0.0, 0.0  # of all scores: number, mean, sum of squared deviations

    def going_on(self, before: ScoreScale | None) -> ScoreScale:
        """Return this scale, with the scores that an earlier one saw, if there was one."""
        if before is not None:
            self.count, self.mean, self.squares = before.count, before.mean, before.squares
        return self

    def __call__(self, rewards: np.ndarray, scores: np.ndarray, ranks: Ranks = _ALONE) -> np.ndarray:
        """Return the rewards on the new scale, same shape.

        Args:
            rewards: Of steps, any shape.
            scores: Of the texts that these steps make up, shape (S,); they count toward the standard deviation first.
            ranks: Which have texts of their own.
        """
        if self.norm_reward:
            self._see(moments(scores, ranks))
            deviation = np.sqrt(self.squares / self.count)
            rewards = rewards / np.float32(deviation if deviation > 1e-8 else 1.0)  # equal scores have no scale
        if self.clip_reward is not None:
            rewards = np.clip(rewards, -self.clip_reward, self.clip_reward)
        return rewards

    def _see(self, scores: Moments) -> None:
        """Add scores to the running moments (Chan et al. 1979)."""
        number, mean = scores.number, float(scores.mean)
        total, difference = self.count + number, mean - self.mean
        self.squares += scores.squares + difference**2 * self.count * number / total
        self.mean += difference * number / total
        self.count = total
