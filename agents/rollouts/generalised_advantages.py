"""Generalised advantage estimation: lambdas of policy and critic, and one for each text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .rollout_samples import Segment


@dataclass(frozen=True)
class Lambdas:
    """Lambdas of the policy's advantages, and of the critic's targets, `returns`.

    One of its own for the critic is decoupled GAE (Yuan et al. 2025, "What's Behind PPO's Collapse in Long-CoT? Value Optimization Holds
    the Secret", VC-PPO): 1 makes the targets the returns themselves, whatever the critic says, while a smaller one keeps the advantages
    quiet.  One by the length is length-adaptive GAE (Yue et al. 2025, "VAPO: Efficient and Reliable Reinforcement Learning for Advanced
    Reasoning Tasks", section 4.2): that of a text of l tokens is 1 - 1 / (alpha l), so that the weights of its temporal differences add
    up to alpha l.  Texts of up to 1 / alpha tokens, which theirs never are, get 0.

    Attributes:
        policy: Lambda of the advantages, in [0, 1]; of no account beside `alpha`.
        critic: Lambda of the targets, in [0, 1]; None: `policy`.
        alpha: Of length-adaptive GAE, above 0; theirs is 0.05, for texts of thousands of tokens.  None: lambda is `policy`.

    Raises:
        ValueError: One is out of range.
    """

    policy: float
    critic: float | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        if (self.critic is not None and not 0 <= self.critic <= 1) or (self.alpha is not None and not self.alpha > 0):
            raise ValueError(f"gae_lambda_critic={self.critic}, gae_alpha={self.alpha}: a lambda in [0, 1] and a number above 0, or None")

    def of(self, segments: Sequence[Segment], shape: tuple[int, int]) -> tuple[float | np.ndarray, float]:
        """Return the policy's lambda, which with `alpha` is one for each token, shape (L, E), and the critic's.

        Args:
            segments: The texts, each whole.
            shape: L steps of E rows.
        """
        critic = self.policy if self.critic is None else self.critic
        if self.alpha is None:
            return self.policy, critic
        lambdas = np.zeros(shape)  # (L, E)
        for segment in segments:
            lambdas[segment.steps, segment.row] = max(0.0, 1 - 1 / (self.alpha * (segment.steps.stop - segment.steps.start)))
        return lambdas, critic


def generalised_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    starts: np.ndarray,
    last_values: np.ndarray,
    dones: np.ndarray,
    gamma: float,
    gae_lambda: float | np.ndarray,
) -> np.ndarray:
    """Return sum_k (gamma lambda)^k delta_(t+k), delta_t = r_t + gamma V_(t+1) - V_t (Schulman et al. 2016), shape (L, E).

    To the digit what Stable-Baselines3 computes with one lambda.

    Args:
        rewards: Of L steps of E rows, shape (L, E), float32.
        values: Of the states before the steps, shape (L, E), float32.
        starts: Whether a text begins at a step, shape (L, E).
        last_values: Of the states after the last step, shape (E,), float32.
        dones: Whether the texts ended at the last step, shape (E,).
        gamma: Discount per token.
        gae_lambda: One number, or one for each token, shape (L, E).
    """
    goes_on = 1 - np.concatenate([starts[1:], dones[None]]).astype(np.float32)  # (L, E)
    next_values = np.concatenate([values[1:], last_values[None]])  # (L, E)
    deltas = rewards + gamma * next_values * goes_on - values  # (L, E)
    decay = np.asarray(gamma * gae_lambda, np.float32) * goes_on  # (L, E)
    advantages, after = np.empty_like(deltas), np.zeros_like(last_values)
    for step in reversed(range(len(deltas))):
        after = advantages[step] = deltas[step] + decay[step] * after
    return advantages
