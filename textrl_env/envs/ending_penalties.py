"""Penalties of a task for texts without end-of-text and for long texts: from the score to the reward."""

from __future__ import annotations

import numpy as np

from ..episode import Episode
from ..task import TextTask


def shaped(task: TextTask, episodes: list[Episode], scores: np.ndarray) -> np.ndarray:
    """Return the rewards of finished texts, shape (n,), float64.

    Args:
        task: Holds the rules: missing end-of-text, soft limit.
        episodes: The texts; those that ended with an illegal action keep their score.
        scores: What the reward model gave them, shape (n,).
    """
    rewards = scores.copy()
    for i, episode in enumerate(episodes):
        if episode.finish_reason == "illegal":
            continue
        if episode.finish_reason == "length" and task.missing_eos == "replace" and task.missing_eos_penalty:
            rewards[i] = -task.missing_eos_penalty
        elif episode.finish_reason == "length":
            rewards[i] -= task.missing_eos_penalty
        rewards[i] -= soft_length_penalty(task, len(episode.response_ids))
    return rewards


def soft_length_penalty(task: TextTask, length: int) -> float:
    """Return the penalty of a response of `length` tokens: 0 up to `soft_max_tokens`, `soft_penalty` at the limit.

    Linear in between: Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", equation 13.
    """
    if task.soft_max_tokens is None or length <= task.soft_max_tokens:
        return 0.0
    return task.soft_penalty * (length - task.soft_max_tokens) / (task.max_new_tokens - task.soft_max_tokens)
