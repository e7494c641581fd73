"""The end of a step: the texts that ended are scored, in one call of the reward model."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reward_model import checked_scores, terms_of
from ..task import TextTask
from .ending_penalties import shaped
from .step_result import StepResult, WrittenStep


def scored(task: TextTask, written: WrittenStep) -> StepResult:
    """Score the texts that a step ended; their rows may have new ones by then.

    Raises:
        RewardError: The reward model failed.
    """
    scores, episodes = np.zeros(len(written.rewards)), written.episodes  # (B,)
    if not episodes:
        return StepResult(written.rewards, scores, written.terminated, {})
    rewards, rows = written.rewards.copy(), written.rows.tolist()  # (B,)
    scores[rows] = _scores(task, written)
    rewards[rows] += shaped(task, episodes, scores[rows])
    infos: list[dict[str, Any]] = [
        {
            "prompt": episode.prompt,
            "prompt_id": int(prompt_id),
            "response": episode.response,
            "finish_reason": episode.finish_reason,
            "score": float(scores[row]),
            "return": float(before + rewards[row]),
        }
        for row, episode, prompt_id, before in zip(rows, episodes, written.prompt_ids, written.returns, strict=True)
    ]
    _add_terms(written, infos)
    return StepResult(rewards, scores, written.terminated, dict(zip(rows, episodes, strict=True)), dict(zip(rows, infos, strict=True)))


def _scores(task: TextTask, written: WrittenStep) -> np.ndarray:
    """Return the score of each text, shape (n,); the reward model is not asked about texts that ended with an illegal token."""
    scores = np.full(len(written.episodes), float(task.illegal_score))  # (n,)
    legal = [i for i, episode in enumerate(written.episodes) if episode.finish_reason != "illegal"]
    scores[legal] = checked_scores(written.reward_model, written.judged)
    return scores


def _add_terms(written: WrittenStep, infos: list[dict[str, Any]]) -> None:
    """Add the parts of the scores just given, None where one did not apply; texts that no reward model saw have none."""
    seen = [info for info in infos if info["finish_reason"] != "illegal"]
    for name, values in (terms_of(written.reward_model, len(seen)) if seen else {}).items():
        for info, value in zip(seen, values, strict=True):
            info.setdefault("reward_terms", {})[name] = None if np.isnan(value) else float(value)
