"""sb3-contrib's MaskablePPO over whole texts."""

from __future__ import annotations

from typing import ClassVar

from sb3_contrib import MaskablePPO
from stable_baselines3.common.policies import BasePolicy

from ..policies.maskable_policy import MaskableTransformerPolicy
from ..rollouts.maskable_rollout_buffer import MaskableSequenceRolloutBuffer
from .ppo import ClippedText


class TextMaskablePPO(ClippedText, MaskablePPO):  # type: ignore[misc]
    """sb3-contrib's MaskablePPO on texts; `train()` is the library's own.

    `TextPPO` follows the environment's masks as well; this class is for code that expects sb3-contrib's.  Its policy is
    `"MaskableTransformerPolicy"` or a subclass of it; all other arguments are those of `TextPPO`.
    """

    __module__ = "agents"

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MaskableTransformerPolicy": MaskableTransformerPolicy}
    _buffer_class = MaskableSequenceRolloutBuffer
