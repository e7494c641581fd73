"""What a rollout consists of: minibatches, and the parts of texts in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..models.sequences import SequenceBatch


class SequenceSamples(NamedTuple):
    """A minibatch of whole texts; the fields, in the order and with the names of SB3's `RolloutBufferSamples`.

    All but `observations` and `action_masks` are flat over the N tokens that are actions, shape (N,).  `reference_log_prob` is None
    without a reference.
    """

    observations: SequenceBatch
    actions: torch.Tensor
    old_values: torch.Tensor
    old_log_prob: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    action_masks: None = None  # MaskablePPO asks for it; what was masked is part of `observations`
    reference_log_prob: torch.Tensor | None = None


class MinibatchSize(NamedTuple):
    """Size of a minibatch that ranks share."""

    texts: int
    tokens: int


class MinibatchShard(NamedTuple):
    """One rank's part of a minibatch.

    Attributes:
        samples: Its texts; None: this rank has none of them.
        whole: Size of the minibatch.
    """

    samples: SequenceSamples | None
    whole: MinibatchSize


@dataclass(frozen=True)
class Segment:
    """The part of one text that lies in this rollout.

    Attributes:
        context: Ids before the first action: the prompt, and what an earlier rollout wrote.
        first_step: Number of response tokens in `context`.
        row: Environment row.
        steps: Steps of the rollout at which its tokens were written.
        replies: Tokens of the environment between its actions, see `TextRecord`.
    """

    context: np.ndarray
    first_step: int
    row: int
    steps: slice
    replies: tuple[tuple[int, np.ndarray], ...] = ()
