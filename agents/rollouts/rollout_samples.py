"""What a rollout consists of: minibatches, the parts of texts in it, and its numbers for the log and for callbacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ..models.sequences import SequenceBatch
from .sampler_mismatch import SamplerMismatch

# Row, step, context, response length, index of the prompt, and its picture (H, W, 3) if it has one
SegmentStart = tuple[int, int, np.ndarray, int, int, np.ndarray | None]


class SequenceSamples(NamedTuple):
    """A minibatch of whole texts; the fields, in the order and with the names of SB3's `RolloutBufferSamples`.

    All but `observations` and `action_masks` are flat over the N tokens that are actions, shape (N,).  `reference_log_prob` is None
    without a reference, `picked` unless the algorithm picked tokens.  `importance_weight` is None without a correction, see
    `sampler_mismatch`; the advantages are multiplied with it.
    """

    observations: SequenceBatch
    actions: torch.Tensor
    old_values: torch.Tensor
    old_log_prob: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    action_masks: None = None  # MaskablePPO asks for it; what was masked is part of `observations`
    reference_log_prob: torch.Tensor | None = None
    importance_weight: torch.Tensor | None = None
    picked: torch.Tensor | None = None


class MinibatchSize(NamedTuple):
    """Size of a minibatch that ranks share; infinite for texts that do not count."""

    texts: float
    tokens: float


NOTHING = MinibatchSize(math.inf, math.inf)


class MinibatchPart(NamedTuple):
    """A micro-batch of one rank's part of a minibatch.

    Attributes:
        samples: Its texts.
        whole: Size of the minibatch; `NOTHING`: this rank has no texts left, and the samples only let it keep step with the others.
        last: Whether it is this rank's last part.
    """

    samples: SequenceSamples
    whole: MinibatchSize
    last: bool


@dataclass(frozen=True)
class Segment:
    """The part of one text that lies in this rollout.

    Attributes:
        context: Ids before the first action: the prompt, and what an earlier rollout wrote.
        first_step: Number of response tokens in `context`.
        row: Environment row.
        steps: Steps of the rollout at which its tokens were written.
        replies: Tokens of the environment between its actions, see `TextRecord`.
        prompt_id: Index of its prompt among the task's; -1: it was not told.
        image: Picture of its prompt, see `TextRecord`.
    """

    context: np.ndarray
    first_step: int
    row: int
    steps: slice
    replies: tuple[tuple[int, np.ndarray], ...] = ()
    prompt_id: int = -1
    image: np.ndarray | None = None


def cut_segments(
    openings: Sequence[SegmentStart], replies: Mapping[int, Sequence[tuple[int, np.ndarray]]], live: np.ndarray
) -> list[Segment]:
    """Find the steps at which each text was written, in the order in which the texts began.

    Args:
        openings: Where each text began.
        replies: By row, what the environment wrote before which step.
        live: Whether a token was written in the row, shape (L, E).
    """
    steps = np.where(live, len(live), np.arange(len(live))[:, None])  # (L, E)
    idle = np.minimum.accumulate(steps[::-1])[::-1]  # (L, E): the first step from here on at which the row is idle
    next_start = dict.fromkeys(range(live.shape[1]), len(live))
    segments = []
    for row, step, context, written, prompt_id, image in reversed(openings):
        end = min(next_start[row], int(idle[step, row]))
        next_start[row] = step
        between = tuple((at - step, ids) for at, ids in replies.get(row, ()) if step < at < end)
        segments.append(Segment(context, written, row, slice(step, end), between, prompt_id, image))
    return segments[::-1]


@dataclass(frozen=True)
class RolloutStats:
    """Numbers of a rollout before the update; where several ranks write it, of all their texts.

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
        mismatch: How far from the policy a generator is that said what it drew the tokens from; None: there was none.
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
    mismatch: SamplerMismatch | None = None


@dataclass(frozen=True)
class RolloutResult:
    """A finished rollout as callbacks see it: `self.model.last_rollout` in `_on_rollout_end`.

    Attributes:
        infos: The environment's last `info` of each text, in the order in which texts ended: `prompt`, `prompt_id`, `response`, `score`,
            `finish_reason`, and whatever the task adds.  Of several ranks, each has its own texts here.
        stats: KL, returns and numbers of tokens.
        seconds: Time of writing the texts, the reference's pass included.
    """

    infos: Sequence[Mapping[str, Any]]
    stats: RolloutStats
    seconds: float

    @property
    def prompts(self) -> list[str]:
        """What each text started from."""
        return [info["prompt"] for info in self.infos]

    @property
    def responses(self) -> list[str]:
        """What was written."""
        return [info["response"] for info in self.infos]

    @property
    def scores(self) -> np.ndarray:
        """The reward model's scores, shape (S,), float64, before scaling and KL shaping."""
        return np.array([info["score"] for info in self.infos], float)  # (S,)

    def share_finished_by(self, reason: str) -> float:
        """Return the share of texts whose `finish_reason` is `reason`, in [0, 1]."""
        return sum(info["finish_reason"] == reason for info in self.infos) / len(self.infos)
