"""The frozen model that KL is measured against: where it comes from, whether it fits, and how it may follow the policy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from torch import nn

from ..models.backbones import Backbone, backbone_of
from ..models.loading import LMSource, folder_hash, frozen, load_lm
from ..policies.transformer_policy import TransformerPolicy


def make_reference(
    source: LMSource | None, policy: TransformerPolicy, adapted: bool, saved_hash: str | None, mixup: float
) -> tuple[nn.Module | None, str | None]:
    """Return the reference of an algorithm, and the SHA-256 of the folder it was loaded from.

    Args:
        source: What to load; None takes a copy of the policy's present weights, or their base under adapters.
        policy: Whose KL will be measured.
        adapted: Whether adapters are trained on top of its weights.
        saved_hash: What the folder's hash was when the algorithm was saved; None: it was not.
        mixup: Share of the policy that goes into the reference after each update.

    Returns:
        The module, None where it is the policy without its adapters; and the hash, None without a folder.

    Raises:
        ValueError: The folder has changed, or the policy cannot be mixed into this reference.
    """
    if mixup and adapted:
        raise ValueError(f"reference_mixup={mixup} changes the reference, which adapters share with the policy: set it to 0")
    if source is None:
        return (None if adapted else frozen(copy.deepcopy(policy.lm))), None
    folder = _folder_of(source)
    now = folder_hash(folder)
    if saved_hash not in (None, now):
        raise ValueError(
            f"the reference in {folder} has changed since this model was saved (SHA-256 {now[:12]}..., saved {saved_hash[:12]}...): "
            "restore it, or KL would be measured against another model"
        )
    reference = frozen(load_lm(source)).to(policy.device)
    if mixup and [p.shape for p in reference.parameters()] != [p.shape for p in policy.lm.parameters()]:
        raise ValueError(f"reference_mixup={mixup} needs a reference of the policy's own architecture")
    return reference, now


def as_reference(
    reference: LMSource | nn.Module | Backbone | None, observation_space: spaces.Dict, vocab_size: int, device: torch.device | str
) -> Backbone | None:
    """Return a model as what KL is measured against; None for None.

    Args:
        reference: What `agents.models.loading.load_lm` takes, a module, or a `Backbone`.
        observation_space: The environment's; prompt and response must fit.
        vocab_size: Tokens of the environment.
        device: Where a loaded model goes.

    Raises:
        ValueError: Its vocabulary or context is smaller than the environment's.
    """
    if reference is None:
        return None
    if not isinstance(reference, Backbone):
        reference = backbone_of(reference if isinstance(reference, nn.Module) else frozen(load_lm(reference)).to(device))
    if reference.vocab_size < vocab_size:
        raise ValueError(f"the reference has {reference.vocab_size} tokens, the environment {vocab_size}: they must share a tokenizer")
    lengths: list[Any] = [observation_space[key].shape for key in ("prompt", "response")]
    reference.check_room(*(shape[0] for shape in lengths))
    return reference


@torch.no_grad()
def move_reference(reference: nn.Module, policy: nn.Module, share: float) -> None:
    """Move the reference toward the policy by `share` (TR-DPO's soft update, Gorbatovski et al. 2024)."""
    for kept, now in zip(reference.parameters(), policy.parameters(), strict=True):
        kept.lerp_(now, share)


def _folder_of(source: LMSource) -> str | Path:
    if not isinstance(source, Mapping):
        return source
    if source.get("weights") is None:
        raise ValueError(f"reference={dict(source)!r} has fresh weights: name a folder, or a class with its 'weights'")
    return source["weights"]
