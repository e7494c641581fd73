"""A policy with low-rank adapters (LoRA): its base model is the reference and takes no further memory.  `rewards.models.lora` adds them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rewards.models.lora import adapted_layers, merge_adapters

from .backbones import Backbone


def check_dropout(lora: Mapping[str, Any] | None) -> None:
    """Refuse dropout in adapters of a policy, and of what is trained to be one.

    Raises:
        ValueError: It is on.
    """
    if dropout := (lora or {}).get("lora_dropout"):
        raise ValueError(f"lora: lora_dropout={dropout}: dropout is off in a policy, its ratios would be noise: leave it out")


def merged(lm: nn.Module) -> nn.Module:
    """Return a copy of the model with its adapters folded into the weights; the model itself if it has none."""
    if not adapted_layers(lm):
        return lm
    copied = copy.deepcopy(lm)
    merge_adapters(copied)
    if hasattr(copied, "_hf_peft_config_loaded"):
        copied._hf_peft_config_loaded = False  # type: ignore[assignment]  # save_pretrained would write the adapters alone
    return copied


@contextmanager
def adapters_off(lm: nn.Module) -> Iterator[None]:
    """Make the model its base model for a while."""
    layers = adapted_layers(lm).values()
    learns = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, before in learns:  # PEFT has all adapters learn that it turns on
            parameter.requires_grad_(before)


def without_adapters(adapted: Backbone) -> Backbone:
    """Return the base model under a policy's adapters, as a reference that takes no memory of its own."""

    def with_adapters_off(method: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any) -> torch.Tensor:
            with adapters_off(adapted.lm):
                return method(*args)

        return call

    base = copy.copy(adapted)  # the same module: what it answers without a pass is the same
    for name in ("hidden", "_run_trunk", "logits", "feed"):
        setattr(base, name, with_adapters_off(getattr(adapted, name)))
    return base
