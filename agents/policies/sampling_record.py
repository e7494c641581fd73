"""The record of how actions were sampled, which the policy hands to the buffer, and other small parts of the policy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from ..models.sampler import Sampler
from ..models.sequences import PartialTexts


class SamplingRecord(NamedTuple):
    """What the buffer must know about the distribution that actions were drawn from.

    `TransformerPolicy.forward` attaches it to the log-probabilities as `log_probs.acting`: SB3 hands that tensor to
    `RolloutBuffer.add` untouched, and there is no other way from a policy to the buffer of an unmodified algorithm.

    Attributes:
        sampler: The sampling rules.
        kept: Packed kept sets, on the policy's device, shape (B, ceil(V / 8)), uint8; None if nothing was masked or cut.
        autocast: Precision of the trunk; None: that of its weights.
        drawn: Log-probabilities of the actions under what drew them, where that was not the policy, shape (B,); NaN: they are not known.
    """

    sampler: Sampler
    kept: torch.Tensor | None
    autocast: torch.dtype | None = None
    drawn: np.ndarray | None = None


def sampling_of(log_prob: torch.Tensor) -> SamplingRecord:
    """Return the record that a policy attached to log-probabilities.

    Raises:
        TypeError: There is none.
    """
    acting = getattr(log_prob, "acting", None)
    if not isinstance(acting, SamplingRecord):
        raise TypeError(
            "log_prob does not say how its tokens were drawn: a TransformerPolicy attaches that to the tensor as `acting`, and "
            "clone(), to(), detach() or arithmetic lose it; pass the tensor that the policy returned, or set its `acting` on yours "
            "(another policy needs another rollout_buffer_class)"
        )
    return acting


class NoFeatures(BaseFeaturesExtractor):
    """SB3 insists on a features extractor; token ids need none."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, features_dim=1)


def nan_message(texts: PartialTexts, row: int) -> str:
    """Say where logits are NaN or infinite."""
    ids, length, prompt = texts.ids[row], int(texts.lengths[row]), int(texts.prompt_lengths[row])
    return (
        f"the policy's logits are NaN or infinite in row {row}, at step {length - prompt} after token {ids[length - 1]}, prompt "
        f"{ids[:prompt].tolist()}: lower the learning rate or max_grad_norm"
    )
