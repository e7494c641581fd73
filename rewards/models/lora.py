"""Low-rank adapters (LoRA) on the trunk of a reward model, through peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from textrl_env.utils.optional_imports import optional_import


def add_adapters(trunk: nn.Module, settings: Mapping[str, Any]) -> None:
    """Put adapters into the trunk, in place, and freeze everything else in it.

    Args:
        trunk: A base model of transformers.
        settings: Arguments of `peft.LoraConfig`, such as `r`, `lora_alpha` and `target_modules` ("all-linear", or names).

    Raises:
        ImportError: peft is not installed.
        ValueError: `target_modules` names nothing in this model.
    """
    with optional_import("lora", "lora needs peft"):
        from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    transposed = any(isinstance(module, Conv1D) for module in trunk.modules())  # GPT-2's layers
    inject_adapter_in_model(LoraConfig(**{"target_modules": "all-linear", "fan_in_fan_out": transposed, **settings}), trunk)
    if not any(parameter.requires_grad for parameter in trunk.parameters()):
        raise ValueError(f"lora={dict(settings)}: no adapter was added, check target_modules")


def merge_adapters(trunk: nn.Module) -> None:
    """Fold the adapters into the weights, in place: what is left is the architecture that the config describes."""
    adapted: list[tuple[str, Any]] = [(name, layer) for name, layer in trunk.named_modules() if hasattr(layer, "get_base_layer")]
    for name, layer in adapted:
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(trunk.get_submodule(parent), own, layer.get_base_layer())
