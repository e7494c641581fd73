"""Policy and buffer in the classes that sb3-contrib's MaskablePPO asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from ..policies.maskable_policy import MaskableTransformerPolicy
from .rollout_buffer import SequenceRolloutBuffer

# By registration: as a base class, contrib's constructor would be called in the middle of SB3's, and does not know its arguments.
MaskableActorCriticPolicy.register(MaskableTransformerPolicy)


class MaskableSequenceRolloutBuffer(SequenceRolloutBuffer, MaskableDictRolloutBuffer):  # type: ignore[misc]
    """A `SequenceRolloutBuffer` for MaskablePPO.

    The masks need no room of their own: they are part of the kept sets that come with the log-probabilities, one bit a token,
    where contrib's buffers store a float32 for each token of the vocabulary.
    """

    __module__ = "agents"

    def add(self, *args: Any, action_masks: np.ndarray | None = None, **kwargs: Any) -> None:
        """Store one step; the masks came with the log-probabilities already."""
        super().add(*args, **kwargs)

    def _minibatches(self, batch_size: int | None) -> Iterator[np.ndarray]:
        """Yield texts of two tokens at least: contrib divides advantages by their deviation, which one token has not (NaN).

        A minibatch of one token joins the next or, as the last one, the one before; the only token of a rollout comes twice, which
        leaves every mean as it is.  Not among several ranks, which need as many minibatches each; `TextMaskablePPO` divides nothing.
        """
        if self._ranks.size > 1:
            yield from super()._minibatches(batch_size)
            return
        joined: list[np.ndarray] = []
        for indices in super()._minibatches(batch_size):
            if joined and self._is_one_token(joined[-1]):
                joined[-1] = np.concatenate([joined[-1], indices])
            else:
                joined.append(indices)
        if self._is_one_token(joined[-1]):
            last = joined.pop()
            joined.append(np.concatenate([joined.pop() if joined else last, last]))
        yield from joined

    def _is_one_token(self, indices: np.ndarray) -> bool:
        return len(indices) == 1 and self._offsets[indices[0] + 1] - self._offsets[indices[0]] == 1
