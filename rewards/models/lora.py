"""Low-rank adapters (LoRA) on the layers of a model, through peft: beside a base that stays as it is, and into which they can be folded."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from textrl_env.utils.optional_imports import optional_import
from textrl_env.utils.suggestions import did_you_mean

_USED = (
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "task_type"),
)
_FIRST_WEIGHTS = (True, False, "gaussian", "orthogonal")  # pissa and olora take theirs out of the base; eva and others need data


def add_adapters(trunk: nn.Module, settings: Mapping[str, Any]) -> None:
    """Put adapters into the trunk, in place, and freeze everything else in it.

    Args:
        trunk: A model of transformers, or a module of one's own.
        settings: Arguments of `peft.LoraConfig`, such as `r`, `lora_alpha` and `target_modules` ("all-linear", or names).

    Raises:
        ImportError: peft is not installed.
        TypeError: `peft.LoraConfig` has no such argument.
        ValueError: A setting trains or changes more than adapters, names nothing in this model, or adapts a tied weight.
    """
    with optional_import("lora", "lora needs peft"):
        from peft import LoraConfig, inject_adapter_in_model
    _check(settings, vars(LoraConfig()))
    if adapted_layers(trunk):
        raise ValueError(f"lora={dict(settings)}: the model already has adapters; fold them in first (peft's merge_and_unload)")
    _check_names(settings, [name for name, _ in trunk.named_modules()])
    with warnings.catch_warnings():
        if "fan_in_fan_out" not in settings:  # peft finds it out layer by layer, GPT-2's are transposed, and warns where it differs
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        inject_adapter_in_model(LoraConfig(**{"target_modules": "all-linear", **settings}), trunk)
    if not any(parameter.requires_grad for parameter in trunk.parameters()):
        raise ValueError(f"lora={dict(settings)}: no adapter was added, check target_modules")
    _check_untied(trunk)


def merge_adapters(trunk: nn.Module) -> None:
    """Fold the adapters into the weights, in place: what is left is the architecture that the config describes.

    Raises:
        ValueError: The model has more than adapters, or one on a tied weight, so that no such weights exist.
    """
    adapted = adapted_layers(trunk)
    if others := [name for name, layer in adapted.items() if not hasattr(layer, "merge")]:
        raise ValueError(f"{others[0]} was trained beside the adapters (modules_to_save or tokens): save the model after merge_and_unload")
    _check_untied(trunk)
    for name, layer in adapted.items():
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(trunk.get_submodule(parent), own, layer.get_base_layer())


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers of peft in the model, by name."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "_disable_adapters")}


def _check(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Insist on settings under which only adapters learn, and the base model under them is the one that was given."""
    for name, value in settings.items():
        if name not in defaults:
            raise TypeError(f"lora: peft.LoraConfig takes no argument {name!r}{did_you_mean(name, list(_USED))}")
        if name not in _USED and value != defaults[name]:
            raise ValueError(
                f"lora: {name}={value!r} trains or changes more than adapters, and the base model under them must stay what it was: "
                f"leave it out; {', '.join(_USED)} can be set"
            )
    first = settings.get("init_lora_weights", True)
    if first not in _FIRST_WEIGHTS:
        raise ValueError(
            f"lora: init_lora_weights={first!r} takes the adapters out of the base model's weights, which must stay what they were, or "
            "needs passes over data that are not made here: give True, False, 'gaussian' or 'orthogonal'"
        )


def _check_names(settings: Mapping[str, Any], modules: list[str]) -> None:
    """Insist that each name in the settings is that of a module: peft passes over others, most without a word."""
    for field in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_to_transform"):
        given = settings.get(field) or ()
        if isinstance(given, (str, int)):  # a regular expression, which peft itself complains of; a single layer
            given = () if isinstance(given, str) else (given,)
        for name in given:
            pattern = rf"(.*\.)?{name}" if field.endswith("pattern") else rf"(.*\.)?{re.escape(str(name))}(\..*)?"
            if not any(re.fullmatch(pattern, module) for module in modules):
                raise ValueError(f"lora: {field} names {name!r}, and the model has no such layer{did_you_mean(str(name), modules)}")


def _check_untied(trunk: nn.Module) -> None:
    """Insist that no adapter is on a weight that another layer uses too: folded in, it would change that layer as well."""
    owners: dict[int, list[str]] = {}
    for name, parameter in trunk.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for names in owners.values():
        if len(names) > 1 and (tied := [name for name in names if ".base_layer." in name]):
            layer = tied[0].partition(".base_layer.")[0]
            raise ValueError(
                f"lora: {layer} shares its weight with {next(n for n in names if n != tied[0])}, and a saved model cannot hold an adapter "
                "of one of them: leave it out of target_modules, or untie the two in the model's configuration (tie_word_embeddings=False)"
            )
