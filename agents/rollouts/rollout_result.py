"""What a rollout wrote, for callbacks and for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RolloutStats:
    """Numbers of a rollout before its update.

    Attributes:
        kl_per_sequence: Mean over texts of sum log(pi / pi_ref), in nats (the k1 estimator).
        kl_per_token: The same per token.
        kl_per_token_k3: The low-variance estimator exp(-d) - 1 + d of the same, d = log(pi / pi_ref).
        beta: The coefficient that shaped these rewards.
        score: Mean reward of the environment per text.
        shaped_return: Mean over texts of score - beta * KL.
        entropy: Mean of -log pi per token, in nats.
        num_tokens: Tokens that are actions.
        num_sequences: Texts.
        reference_seconds: Time of the reference pass.
    """

    kl_per_sequence: float
    kl_per_token: float
    kl_per_token_k3: float
    beta: float
    score: float
    shaped_return: float
    entropy: float
    num_tokens: int
    num_sequences: int
    reference_seconds: float

    @property
    def length(self) -> float:
        """Mean number of tokens per text."""
        return self.num_tokens / self.num_sequences


@dataclass(frozen=True)
class RolloutResult:
    """A finished rollout: what callbacks find in `model.last_rollout` when `on_rollout_end` is called.

    The columns have one entry per text, in the order in which the texts ended; of several ranks, they hold the texts of all.

    Attributes:
        prompts: What the texts started from.
        responses: What was written.
        scores: What the environment paid for each text, without KL and scaling, shape (S,).
        finish_reasons: Why each text ended: `"eos"`, `"length"`, or another reason of the task.
        reward_terms: Named parts of each score; empty where the reward model names none.
        stats: Means over the rollout: score, KL, entropy, length.
    """

    prompts: list[str]
    responses: list[str]
    scores: np.ndarray
    finish_reasons: list[str]
    reward_terms: list[Mapping[str, float]]
    stats: RolloutStats

    @classmethod
    def of(cls, infos: Sequence[Mapping[str, Any]], stats: RolloutStats) -> RolloutResult:
        """Read the texts from the `info` of each text's last step."""
        return cls(
            prompts=[info["prompt"] for info in infos],
            responses=[info["response"] for info in infos],
            scores=np.array([info["score"] for info in infos], float),
            finish_reasons=[info["finish_reason"] for info in infos],
            reward_terms=[info.get("reward_terms", {}) for info in infos],
            stats=stats,
        )

    def share_finished_by(self, reason: str) -> float:
        """Return the share of texts with this finish reason, in [0, 1]."""
        return self.finish_reasons.count(reason) / len(self.finish_reasons)
