"""Checkpoints of supervised training: weights, optimizer and generator as safetensors, all else as JSON; loading runs no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from textrl_env.utils.files import new_folder

_STATE, _FACTS = "state.safetensors", "training.json"


def save_training(folder: Path, lm: nn.Module, facts: dict[str, Any], steps: tuple[Optimizer, LRScheduler] | None = None) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        folder: What it replaces, if it is there.
        lm: What is trained; parameters that do not learn are left out.
        facts: What else `load_training` is to return, as plain data.
        steps: Optimizer and schedule, if the training is in the middle of a course of steps.
    """
    frozen = _frozen(lm)
    tensors = {f"model.{name}": value for name, value in lm.state_dict().items() if name not in frozen}
    tensors["generator"] = torch.get_rng_state()
    if steps is not None:
        optimizer, schedule = steps
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        facts = {**facts, "groups": optimizer.state_dict()["param_groups"], "schedule": schedule.state_dict()}
    with new_folder(folder) as made:
        # Tied weights are two names of one tensor, which safetensors refuses
        save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, made / _STATE)
        (made / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _frozen(lm: nn.Module) -> set[str]:
    """Return the names of parameters that do not learn: the base under adapters, which whoever goes on has."""
    return {name for name, parameter in lm.named_parameters(remove_duplicate=False) if not parameter.requires_grad}


def load_training(folder: Path, lm: nn.Module, steps: tuple[Optimizer, LRScheduler] | None = None) -> dict[str, Any] | None:
    """Restore what `save_training` saved, torch's generator included.

    Returns:
        The facts; None if there is no checkpoint.

    Raises:
        ValueError: It is damaged, or of another model.
    """
    if not folder.is_dir():
        return None
    try:
        tensors = load_file(folder / _STATE)
        facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        state = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        missing, others = lm.load_state_dict(state, strict=False)
        if wrong := sorted([*others, *(set(missing) - _frozen(lm))]):
            raise ValueError(f"{len(wrong)} names are not in both, {wrong[0]} among them")
        if steps is not None:
            optimizer, schedule = steps
            states: dict[int, dict[str, torch.Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith("optimizer."):
                    _, index, part = name.split(".", 2)
                    states.setdefault(int(index), {})[part] = value
            optimizer.load_state_dict({"state": states, "param_groups": facts.pop("groups")})
            schedule.load_state_dict(facts.pop("schedule"))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} is no checkpoint of this training ({error}): delete it to start over") from error
    torch.set_rng_state(tensors["generator"])
    return facts
