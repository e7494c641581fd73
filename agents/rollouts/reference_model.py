"""The frozen model that KL is measured against: where it comes from, whether it fits, and how it may follow the policy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rewards.utils.devices import AUTO, get_device
from textrl_env.utils.model_files import model_folder

from ..models.backbones import Backbone, backbone_of
from ..models.loading import LMSource, folder_hash, frozen, in_shards, is_in_shards, load_lm
from ..models.model_checks import check_head, check_lengths
from ..models.sequences import image_shape_of
from ..policies.transformer_policy import TransformerPolicy

Reference = LMSource | nn.Module | Backbone


def make_reference(
    source: LMSource | None, policy: TransformerPolicy, adapted: bool, saved_hash: str | None, mixup: float, engine: Any
) -> tuple[nn.Module | None, str | None]:
    """Return the frozen reference of an algorithm, and the SHA-256 of the folder it was loaded from.

    Args:
        source: What to load; None: the policy's present weights are copied, or, if only adapters train, the base under them is taken.
        policy: The policy whose KL will be measured.
        adapted: Whether only adapters train.
        saved_hash: The folder's hash when the algorithm was saved; None: it was not saved.
        mixup: Share of the policy that goes into the reference after each update.
        engine: How the models are held, see `agents.models.loading.in_shards`.

    Returns:
        The module, None if it is the policy without its adapters; and the hash, None without a folder.

    Raises:
        ValueError: The folder has changed, or the policy cannot be mixed into this reference.
    """
    if mixup and adapted:
        raise ValueError(f"reference_mixup={mixup} changes the reference, which adapters share with the policy: set it to 0")
    if source is None and is_in_shards(policy.lm):  # no module in shards can be copied, and its weights are the folder's
        return frozen(load_lm(policy._source)), None
    if source is None:
        return (None if adapted else frozen(copy.deepcopy(policy.lm))), None
    folder = _folder_of(source)
    now = folder_hash(folder)
    if saved_hash not in (None, now):
        raise ValueError(
            f"the reference in {folder} has changed since this model was saved (SHA-256 {now[:12]}..., saved {saved_hash[:12]}...): "
            "restore it, or KL would be measured against another model"
        )
    reference = frozen(load_lm(in_shards(source, engine))).to(policy.device)
    if mixup and [p.shape for p in reference.parameters()] != [p.shape for p in policy.lm.parameters()]:
        raise ValueError(f"reference_mixup={mixup} needs a reference of the policy's own architecture")
    return reference, now


def as_reference(reference: Reference, texts: Any, vocab_size: int, device: torch.device | str = AUTO) -> Backbone:
    """Return a reference as a backbone, once it is clear that it can read the environment's texts.

    Args:
        reference: What `agents.models.loading.load_lm` takes, a module, or a `Backbone`.  Of a module that trains (gradients or training
            mode on) a frozen copy is taken: left as it is, dropout would make KL noise, and KL would be measured to the tuned weights.
        texts: Space of one text, `Dict(prompt, response)`.
        vocab_size: Tokens of the environment; a reference with more is renormalised on these.
        device: Where it goes, see `rewards.utils.devices.get_device`; by default a module stays where it is, and a `Backbone` always does.

    Raises:
        TypeError: The module is no language model.
        ValueError: Its vocabulary or context is smaller than the environment's, or its logits are changed in a way that is not known.
    """
    if isinstance(reference, nn.Module) and is_in_shards(reference):  # all processes together try it when training begins
        reference = backbone_of(reference)
    elif isinstance(reference, nn.Module):
        if reference.training or any(p.requires_grad for p in reference.parameters()):
            reference = frozen(copy.deepcopy(reference))
        reference = reference if device == AUTO else reference.to(get_device(device))
        check_head(backbone_of(reference))
    elif not isinstance(reference, Backbone):
        there = get_device(device)
        reference = frozen(load_lm(reference)).to(there)
    elif device != AUTO and reference.device.type != get_device(device).type:
        raise ValueError(
            f"the reference's model is on {reference.device}, and the texts are read on {device}: move it with .to({str(device)!r})"
        )
    backbone = backbone_of(reference) if isinstance(reference, nn.Module) else reference
    if backbone.vocab_size < vocab_size:
        raise ValueError(f"the reference has {backbone.vocab_size} tokens, the environment {vocab_size}: they must share a tokenizer")
    try:
        backbone.check_images(image_shape_of(texts))
        room = [texts[key].shape[0] for key in ("prompt", "response")]
        if isinstance(reference, Backbone):  # what a policy reads with, under its adapters perhaps: it was checked there
            backbone.check_room(*room)
        else:
            check_lengths(backbone, *room)
    except ValueError as error:
        raise ValueError(f"the reference does not fit: {error}") from error
    return backbone


@torch.no_grad()
def move_reference(reference: nn.Module, policy: nn.Module, share: float) -> None:
    """Move the reference toward the policy by `share` (TR-DPO's soft update, Gorbatovski et al. 2024)."""
    for kept, now in zip(reference.parameters(), policy.parameters(), strict=True):
        kept.lerp_(now, share)


def _folder_of(source: LMSource) -> str | Path:
    if not isinstance(source, Mapping):
        return model_folder(source)
    if source.get("weights") is None:
        raise ValueError(f"reference={dict(source)!r} has fresh weights: name a folder, or a class with its 'weights'")
    return source["weights"]
