"""Verifiable reasoning tasks: questions that reasoning-gym generates, scored by its own verifiers."""

from .task import levels_of, reasoning_task
from .verifier import UNFIT, Verifier

__all__ = ["UNFIT", "Verifier", "levels_of", "reasoning_task"]
