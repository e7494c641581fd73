"""Checkpoints of supervised training, by one process or several: weights, optimizer, schedule and generator; loading runs no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...distributed.sharded_checkpoint import load_sharded, save_sharded


def save_training(folder: Path, lm: nn.Module, facts: dict[str, Any], steps: tuple[Optimizer, LRScheduler] | None = None) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        folder: What it replaces, if it is there.
        lm: What is trained; parameters that do not learn are left out: the base under adapters, which whoever goes on has.
        facts: What else `load_training` is to return, as plain data.
        steps: Optimizer and schedule, if the training is in the middle of a course of steps.
    """
    optimizer, schedule = steps or (None, None)
    own = {} if schedule is None else {"schedule": schedule.state_dict()}
    save_sharded(folder, lm, optimizer, {"generator": torch.get_rng_state()}, {**facts, **own})


def load_training(folder: Path, lm: nn.Module, steps: tuple[Optimizer, LRScheduler] | None = None) -> dict[str, Any] | None:
    """Restore what `save_training` saved, torch's generator included.

    Returns:
        The facts; None if there is no checkpoint.

    Raises:
        ValueError: It is damaged, or of another model.
    """
    optimizer, schedule = steps or (None, None)
    generator = torch.get_rng_state()
    facts = load_sharded(folder, lm, optimizer, {"generator": generator})
    if facts is not None:
        torch.set_rng_state(generator)
        if schedule is not None:
            schedule.load_state_dict(facts.pop("schedule"))
    return facts
