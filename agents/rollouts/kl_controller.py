"""The coefficient of the KL penalty, beta: fixed, adaptive or on a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class KLController:
    """A fixed coefficient of the KL penalty.

    Args:
        beta: Reward units per nat of KL, >= 0.
    """

    __module__ = "agents"

    def __init__(self, beta: float = 0.05) -> None:
        if not (np.isfinite(beta) and beta >= 0):
            raise ValueError(f"beta={beta}: must be finite and >= 0")
        self.beta = float(beta)

    def update(self, kl_per_sequence: float, num_episodes: int) -> None:
        """Take note of the KL of the last rollout; a fixed coefficient ignores it.

        Args:
            kl_per_sequence: Mean over texts of the summed log(pi / pi_ref), in nats.
            num_episodes: Number of texts in the rollout.
        """

    def follow(self, progress_remaining: float) -> None:
        """Take note of how much of the training is left, from 1 to 0, before a rollout; only a schedule uses it."""

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint must hold."""
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over the state of a checkpoint."""
        self.beta = state["beta"]


class AdaptiveKLController(KLController):
    """Steers KL per sequence to a target (Ziegler et al. 2019, section 2.2).

    `error = clip(KL / target - 1, -0.2, 0.2)`, `beta *= 1 + error * num_episodes / horizon`.

    Args:
        beta: The first coefficient, > 0.
        target: KL per sequence to hold, in nats, > 0.
        horizon: In episodes: a persistent error of 0.2 changes beta by 20% in this many.  Ziegler et al. use 10,000 for
            a million episodes; runs of a few thousand need a few hundred.
        bounds: Smallest and largest beta.
    """

    __module__ = "agents"

    def __init__(self, beta: float = 0.1, target: float = 6.0, horizon: int = 10_000, bounds: tuple[float, float] = (1e-4, 10.0)) -> None:
        super().__init__(beta)
        if not target > 0 or horizon < 1 or not 0 < bounds[0] <= beta <= bounds[1]:
            raise ValueError(
                f"target={target}, horizon={horizon}, bounds={bounds}, beta={beta}: need target > 0, horizon >= 1, 0 < low <= beta <= high"
            )
        self.target = float(target)
        self.horizon = int(horizon)
        self.bounds = (float(bounds[0]), float(bounds[1]))

    def update(self, kl_per_sequence: float, num_episodes: int) -> None:
        """Raise beta when KL is above the target, lower it below."""
        error = float(np.clip(kl_per_sequence / self.target - 1, -0.2, 0.2))
        beta = self.beta * (1 + error * num_episodes / self.horizon)
        self.beta = float(np.clip(beta, *self.bounds))


class ScheduledKLController(KLController):
    """A coefficient that follows a schedule, in the form of SB3's schedules.

    Args:
        schedule: From what is left of the training, 1 at the start and 0 at the end, to beta >= 0.  Under Stable-Baselines3's own
            algorithms, which do not tell the buffer how far they are, it stays at its start.
    """

    __module__ = "agents"

    def __init__(self, schedule: Callable[[float], float]) -> None:
        super().__init__(schedule(1.0))
        self.schedule = schedule

    def follow(self, progress_remaining: float) -> None:
        """Take the schedule's value."""
        self.beta = KLController(self.schedule(progress_remaining)).beta


Beta = float | dict[str, Any] | KLController | Callable[[float], float]  # what `as_kl_controller` takes


def as_kl_controller(beta: Beta) -> KLController:
    """Return a controller: of a number (fixed), keyword arguments of `AdaptiveKLController`, a schedule, or a controller itself."""
    if isinstance(beta, KLController):
        return beta
    if callable(beta):
        return ScheduledKLController(beta)
    return AdaptiveKLController(**beta) if isinstance(beta, dict) else KLController(beta)
