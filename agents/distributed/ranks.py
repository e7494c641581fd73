"""The ranks of one training: the data they exchange, and the error when they differ."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.distributed.tensor import DTensor

_AGAIN = "the same command goes on from the last checkpoint"


class RankError(OSError):
    """The ranks cannot go on together: one is gone or failed, or their weights or settings differ.

    Attributes:
        told: Whether another rank tells the user why.
    """

    told: bool = False


class Ranks:
    """This process among those that train together.  In a training of one process, `size` is 1 and no method waits.

    Attributes:
        rank: Number of this process, in [0, size).
        size: How many there are.
        device: Where this process computes, if there are several.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order; anything that can be pickled."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value."""
        return value

    def wait(self) -> None:
        """Wait until all ranks are here."""

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on rank 0, then on the others: they can use the files that rank 0 made."""
        yield

    def share_weights(self, module: nn.Module) -> None:
        """Give the module rank 0's parameters and buffers."""

    def numbers(self, values: ArrayLike) -> np.ndarray:
        """Return the numbers of all ranks, shape (R, ...), float64; equal on all of them.  The shapes must be the same."""
        return np.asarray(values, np.float64)[None]

    def sums(self, values: ArrayLike) -> np.ndarray:
        """Return numbers added up over the ranks, shape (...), float64; equal on all of them."""
        return self.numbers(values).sum(0)

    def together(self) -> AbstractContextManager[None]:
        """Return a context for what torch sends by itself: where another rank is gone, it raises RankError with the reason."""
        return nullcontext()

    def say_once(self, message: str) -> bool:
        """Return whether this rank is the first that wants to tell the user this."""
        return True

    def fail(self, message: str) -> None:
        """Store why this rank ends, for the error messages of the others."""

    def check_equal(self, what: Mapping[str, Any]) -> None:
        """Check that all ranks hold the same.

        Args:
            what: Names, and a module or plain data of each.

        Raises:
            RankError: A rank differs from rank 0.
        """
        if self.size == 1:
            return
        first, *others = self.gather({name: digest(value) for name, value in what.items()})
        for rank, other in enumerate(others, 1):
            for name, (seen, total) in first.items():
                if other[name][0] != seen:
                    raise RankError(
                        f"rank {rank} holds other {name} than rank 0 (digest {other[name][0]}, sum {other[name][1]:.17g}; rank 0: {seen}, "
                        f"{total:.17g}): the ranks no longer train one policy; {_AGAIN}"
                    )

    def total(self, notes: Mapping[str, float]) -> dict[str, float]:
        """Combine the ranks' numbers of a minibatch: the least of `..._min`, the greatest of `..._max`, the sum of all others.

        Args:
            notes: Of the same names in the same order on all ranks.

        Raises:
            FloatingPointError: Something is NaN on a rank, on all ranks alike.
        """
        if self.size == 1:
            return dict(notes)
        parts = [dict(zip(notes, row, strict=True)) for row in self.numbers(list(notes.values())).tolist()]
        for rank, part in enumerate(parts):
            bad = [name for name, value in part.items() if math.isnan(value) or (name == "loss" and math.isinf(value))]
            if bad:
                raise FloatingPointError(f"{', '.join(bad)} is NaN or infinite on rank {rank}: lower learning_rate or max_grad_norm")
        return combined(parts)


def combined(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the numbers of a whole from those of its parts: the least of `..._min`, the greatest of `..._max`, the sum of all others."""

    def of(name: str) -> Any:
        return min if name.endswith("_min") else max if name.endswith("_max") else math.fsum

    return {name: of(name)(part[name] for part in parts if name in part) for name in {n: 0 for part in parts for n in part}}


def digest(value: Any) -> tuple[str, float]:
    """Return a hash of a module's state or of plain data, and in double precision the sum of the module's numbers."""
    if not isinstance(value, nn.Module):
        return hashlib.sha256(repr(value).encode()).hexdigest()[:12], 0.0
    hashed, total = hashlib.sha256(), 0.0
    for tensor in value.state_dict().values():
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # all ranks ask
        tensor = tensor.detach().cpu().contiguous()
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        total += float(tensor.double().sum())
    return hashed.hexdigest()[:12], total
