"""The frozen model that KL is measured against."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.backbones import Backbone, backbone_of
from ..models.loading import LMSource, folder_hash, frozen, load_lm
from ..models.lora import WithoutAdapters
from ..policies.transformer_policy import TransformerPolicy

Reference = LMSource | nn.Module | Backbone


def reference_backbone(reference: Reference, texts: Any, vocab_size: int, device: torch.device | str = "cpu") -> Backbone:
    """Return a reference as a backbone, once it is clear that it can read the environment's texts.

    Args:
        reference: What `agents.models.loading.load_lm` takes, a module, or a `Backbone`.  Of a module that trains (gradients or training
            mode on) a frozen copy is taken: left as it is, dropout would make KL noise, and KL would be measured to the tuned weights.
        texts: Space of one text, `Dict(prompt, response)`.
        vocab_size: Tokens of the environment; a reference with more is renormalised on these.
        device: Where a model that is loaded goes.

    Raises:
        TypeError: The module is no language model.
        ValueError: Its vocabulary or context is smaller than the environment's.
    """
    if isinstance(reference, nn.Module):
        if reference.training or any(p.requires_grad for p in reference.parameters()):
            reference = frozen(copy.deepcopy(reference))
    elif not isinstance(reference, Backbone):
        reference = frozen(load_lm(reference)).to(device)
    backbone = backbone_of(reference) if isinstance(reference, nn.Module) else reference
    if backbone.vocab_size < vocab_size:
        raise ValueError(f"the reference has {backbone.vocab_size} tokens, the environment {vocab_size}: they must share a tokenizer")
    try:
        backbone.check_room(*(texts[key].shape[0] for key in ("prompt", "response")))
    except ValueError as error:
        raise ValueError(f"the reference does not fit: {error}") from error
    return backbone


class ReferenceModel:
    """The reference of a training: a model from a folder, a copy of the policy's first weights, or the base under the policy's adapters.

    Args:
        policy: With its first weights.
        adapted: Whether only adapters train.
        source: Where the model is; None: the policy's first weights, or the base under its adapters, which needs no copy.
        saved_hash: SHA-256 of that folder when a checkpoint was written; None: there is no checkpoint.
        mixup: Share of the policy that goes into the reference after each update.

    Attributes:
        lm: The frozen model; None if it is the base under adapters.
        backbone: The same as what KL is measured with.
        hash: SHA-256 of the folder; None without a folder.

    Raises:
        ValueError: The folder holds another model than when the checkpoint was written, the source has no weights, the model cannot read
            the policy's texts, or it cannot be mixed with the policy.
    """

    def __init__(self, policy: TransformerPolicy, adapted: bool, source: LMSource | None, saved_hash: str | None, mixup: float) -> None:
        if mixup and adapted:
            raise ValueError(f"reference_mixup={mixup} changes the reference, which adapters share with the policy: set it to 0")
        self.hash, self._mixup, self._has_folder = saved_hash, mixup, source is not None
        self.lm: nn.Module | None = None
        if source is not None:
            self.hash = _checked_hash(_folder_of(source), saved_hash)
            self.lm = frozen(load_lm(source)).to(policy.device)
        elif not adapted:
            self.lm = frozen(copy.deepcopy(policy.lm))
        reference = WithoutAdapters(policy.backbone) if self.lm is None else self.lm
        self.backbone = reference_backbone(reference, policy.observation_space, policy.vocab_size)
        if mixup and [p.shape for p in self.backbone.lm.parameters()] != [p.shape for p in policy.lm.parameters()]:
            raise ValueError(f"reference_mixup={mixup} needs a reference of the policy's own architecture")

    @property
    def saves_weights(self) -> bool:
        """Whether a checkpoint must hold the weights: nothing else does, or they move."""
        return self.lm is not None and (not self._has_folder or self._mixup > 0)

    @torch.no_grad()
    def mix(self, lm: nn.Module) -> None:
        """Move the reference toward the policy's model (TR-DPO's soft update, Gorbatovski et al. 2024)."""
        for kept, now in zip(self.backbone.lm.parameters(), lm.parameters(), strict=True):
            kept.lerp_(now, self._mixup)


def _folder_of(source: LMSource) -> str | Path:
    folder = source.get("weights") if isinstance(source, Mapping) else source
    if folder is None:
        raise ValueError(f"reference={source!r} has fresh weights: name a folder, or a class with its 'weights'")
    return folder


def _checked_hash(folder: str | Path, saved: str | None) -> str:
    """Return the folder's SHA-256; it must be that of the checkpoint, if there is one."""
    current = folder_hash(folder)
    if saved not in (None, current):
        raise ValueError(
            f"the reference in {folder} has changed since this model was saved (SHA-256 {current[:12]}..., saved {saved[:12]}...): "
            "restore it, or KL would be measured against another model"
        )
    return current
