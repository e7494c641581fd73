"""The reasons for which texts end, and the result of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..episode import Episode
from ..reward_model import RewardModel

REASONS = ("", "eos", "stop", "length", "task", "turns", "illegal")
GOES_ON, EOS, STOP, LENGTH, TASK, TURNS, ILLEGAL = range(len(REASONS))


class WrittenStep(NamedTuple):
    """What one step did to the B rows before the n texts that it ended are scored.

    Attributes:
        rewards: Dense rewards, shape (B,), float64.
        terminated: True where a text ended, shape (B,), bool.
        rows: Where texts ended, shape (n,).
        episodes: These texts.
        returns: What each was paid so far, shape (n,).
        prompt_ids: Their prompts, shape (n,).
        reward_model: Scores them.
    """

    rewards: np.ndarray
    terminated: np.ndarray
    rows: np.ndarray
    episodes: list[Episode]
    returns: np.ndarray
    prompt_ids: np.ndarray
    reward_model: RewardModel

    @property
    def judged(self) -> list[Episode]:
        """The texts that the reward model is asked about: all but those that ended with an illegal token."""
        return [episode for episode in self.episodes if episode.finish_reason != "illegal"]


@dataclass(frozen=True)
class StepResult:
    """What one step did to the B rows.

    Attributes:
        rewards: Scores of the texts that ended after the task's penalties, and dense rewards, shape (B,), float64.
        scores: What the reward model said of the texts that ended, 0 elsewhere, shape (B,), float64.
        terminated: True where a text ended, shape (B,), bool.
        episodes: The texts that ended, by row.
        infos: The infos of their ends, by row.
    """

    rewards: np.ndarray
    scores: np.ndarray
    terminated: np.ndarray
    episodes: dict[int, Episode]
    infos: dict[int, dict[str, Any]] = field(default_factory=dict)
