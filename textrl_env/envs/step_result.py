"""The reasons for which texts end, and the result of a step."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..episode import Episode

REASONS = ("", "eos", "stop", "length", "task", "turns", "illegal")
GOES_ON, EOS, STOP, LENGTH, TASK, TURNS, ILLEGAL = range(len(REASONS))


@dataclass(frozen=True)
class StepResult:
    """What one step did to the B rows.

    Attributes:
        rewards: Scores of the texts that ended after the task's penalties, and dense rewards, shape (B,), float64.
        scores: What the reward model said of the texts that ended, 0 elsewhere, shape (B,), float64.
        terminated: True where a text ended, shape (B,), bool.
        episodes: The texts that ended, by row.
        terms: The parts of their scores by name, by row, where the reward model has parts; None: a part did not apply to the text.
    """

    rewards: np.ndarray
    scores: np.ndarray
    terminated: np.ndarray
    episodes: dict[int, Episode]
    terms: dict[int, dict[str, float | None]] = field(default_factory=dict)
