"""Numbers on a common scale: scores divided by their running standard deviation and clipped, and whitening."""

from __future__ import annotations

import numpy as np


def whiten(values: np.ndarray) -> np.ndarray:
    """Return the values with mean 0 and variance 1."""
    return (values - values.mean()) / np.sqrt(values.var() + 1e-8)


def whiten_returns(rewards: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the rewards of tokens such that the returns of texts have variance 1, and the mean they have; equal returns stay.

    All tokens are divided by the deviation of the returns, and the last of each text takes what keeps the mean.  To whiten single
    tokens, as Ziegler et al. (2019) do with texts of one length, would pay a share of the mean for every token: it would pay for length.

    Args:
        rewards: Shape (N,).
        offsets: Where each text's tokens begin, and N, shape (S + 1,).
    """
    returns = np.add.reduceat(rewards, offsets[:-1], dtype=np.float64)  # (S,)
    deviation = returns.std()
    if deviation <= 1e-6 * np.abs(returns).max():  # rounding of float32
        return rewards
    scaled = rewards / deviation  # (N,)
    scaled[offsets[1:] - 1] += returns.mean() * (1 - 1 / deviation)
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

    def __call__(self, rewards: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the rewards on the new scale, same shape.

        Args:
            rewards: Of steps, any shape.
            scores: Of the texts that these steps make up, shape (S,); they count toward the standard deviation first.
        """
        if self.norm_reward:
            self._see(scores)
            deviation = np.sqrt(self.squares / self.count)
            rewards = rewards / np.float32(deviation if deviation > 1e-8 else 1.0)  # equal scores have no scale
        if self.clip_reward is not None:
            rewards = np.clip(rewards, -self.clip_reward, self.clip_reward)
        return rewards

    def _see(self, scores: np.ndarray) -> None:
        """Add these scores to the running moments (Chan et al. 1979)."""
        number, mean = len(scores), float(scores.mean())
        total, difference = self.count + number, mean - self.mean
        self.squares += float(((scores - mean) ** 2).sum()) + difference**2 * self.count * number / total
        self.mean += difference * number / total
        self.count = total
