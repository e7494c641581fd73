"""What fitting asks of processes that fit one model: one alone needs nothing, several are `agents.distributed.engine`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn


class FittingEngine(Protocol):
    """The part of `agents.distributed.engine.Engine` that fitting uses; this package cannot import it.

    Attributes:
        ranks: The processes, `agents.distributed.ranks.Ranks`.
        sharded: Whether each holds a part of the weights only.
    """

    ranks: Any
    sharded: bool

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take over a model with the optimizer that steps it, and make its weights equal in all processes."""
        ...

    def add_gradients(self, loss_of: Callable[..., tuple[torch.Tensor, Any]], *arguments: Any, last: bool = True) -> Any:
        """Add the gradients of a summand of the loss, over all processes, and return its notes."""
        ...


class _One:
    rank, size = 0, 1

    def sums(self, values: float) -> float:
        return values

    def broadcast(self, value: Any) -> Any:
        return value

    def check_equal(self, what: Mapping[str, Any]) -> None:
        return

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()


class Alone:
    """One process."""

    sharded = False

    def __init__(self) -> None:
        self.ranks: Any = _One()

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `FittingEngine`."""

    def add_gradients(self, loss_of: Callable[..., tuple[torch.Tensor, Any]], *arguments: Any, last: bool = True) -> Any:
        """See `FittingEngine`."""
        loss, notes = loss_of(*arguments)
        loss.backward()
        return notes
