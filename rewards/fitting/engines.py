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


class Alone:
    """One process, and the only one of its ranks."""

    sharded, rank, size = False, 0, 1

    def __init__(self) -> None:
        self.ranks: Any = self

    def sums(self, values: Any) -> Any:
        """Return what all processes have in sum, or what the first one has."""
        return values

    broadcast = sums

    def check_equal(self, what: Mapping[str, Any]) -> None:
        """Insist that all processes have the same."""

    def together(self) -> AbstractContextManager[None]:
        """Return a context for what is sent."""
        return nullcontext()

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """See `FittingEngine`."""

    def add_gradients(self, loss_of: Callable[..., tuple[torch.Tensor, Any]], *arguments: Any, last: bool = True) -> Any:
        """See `FittingEngine`."""
        loss, notes = loss_of(*arguments)
        loss.backward()
        return notes
