"""Policy and buffer in the classes that sb3-contrib's MaskablePPO asks for."""

from __future__ import annotations

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
