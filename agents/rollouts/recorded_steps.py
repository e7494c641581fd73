"""The steps of a rollout as they are written, with as few waits for a device as can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_WAITING_AT_MOST = 1 << 26  # bytes that wait on a device


class RecordedSteps:
    """Steps of E rows.  What lies on a device is brought to the host for many steps at once: a GPU would stop the host at each.

    Attributes:
        steps: Of each step that is on the host: actions, rewards, starts, values, log-probabilities, live rows, shape (E,) each.
        kept: Packed kept sets of the R live rows of each, shape (R, ceil(V / 8)); empty if nothing was masked or cut.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[np.ndarray, ...]] = []
        self.kept: list[np.ndarray] = []
        self._waiting: list[tuple[Any, ...]] = []

    def add(
        self,
        actions: np.ndarray,
        rewards: np.ndarray,
        starts: np.ndarray,
        values: torch.Tensor,
        log_probs: torch.Tensor,
        live: np.ndarray,
        kept: torch.Tensor | None,
    ) -> None:
        """Store a step.

        Raises:
            FloatingPointError: See `fetch`, which steps on the CPU go through at once.
        """
        self._waiting.append((actions, rewards, starts, values.detach().flatten(), log_probs.detach().flatten(), live, kept))
        size = values.nbytes + log_probs.nbytes + (0 if kept is None else kept.nbytes)
        if values.device.type == "cpu" or size * len(self._waiting) > _WAITING_AT_MOST:
            self.fetch()

    def fetch(self) -> None:
        """Bring all steps to the host.

        Raises:
            FloatingPointError: A log-probability or value is NaN or infinite.
        """
        if not self._waiting:
            return
        actions, rewards, starts, values, log_probs, live, kept = zip(*self._waiting, strict=True)
        scores = [torch.stack(column).cpu().numpy() for column in (values, log_probs)]  # (l, E) each, of l steps
        bad = ~(np.isfinite(scores[0]) & np.isfinite(scores[1])).all(1)  # (l,)
        if bad.any():
            step = len(self.steps) + int(bad.argmax())
            raise FloatingPointError(f"NaN or infinity in values or log-probabilities at step {step} of the rollout")
        self.steps.extend(zip(actions, rewards, starts, *scores, live, strict=True))
        if kept[0] is not None:
            self.kept.extend(sets[rows] for sets, rows in zip(torch.stack(kept).cpu().numpy(), live, strict=True))
        self._waiting.clear()
