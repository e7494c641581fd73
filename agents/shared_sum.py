"""Sums over the processes of one machine through its memory.

On CPUs gloo sends gradients through the loopback device: 24 ms for 6 million numbers between two processes, of 180 ms that a minibatch
takes them in `agents.benchmark.ranks`.  Written to memory that all see, and summed from there, it is a fraction of that.
"""

from __future__ import annotations

import shutil
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .ranks import Ranks

MEMORY = Path("/dev/shm")  # files that are never on a disk; Linux only


class SharedSum:
    """Adds up a vector of every rank, in their order, so that all get the same bits.

    Args:
        ranks: Those that add.
        file: In `MEMORY`, the same for all; gone when all have opened it, so that no rank can leave it behind.
        length: Of the vector.
        dtype: Of its numbers.
    """

    def __init__(self, ranks: Ranks, file: Path, length: int, dtype: torch.dtype) -> None:
        self._ranks = ranks
        self._slots = torch.from_file(str(file), shared=True, size=ranks.size * length, dtype=dtype).view(ranks.size, length)  # (R, N)
        self._sum = torch.empty(length, dtype=dtype)
        ranks.wait()
        if ranks.is_main:
            file.unlink()

    def __call__(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the sum of all ranks' vectors, shape (N,), in memory of this rank that the next call overwrites.

        Args:
            parts: Pieces of this rank's vector, flat.
        """
        torch.cat(list(parts), out=self._slots[self._ranks.rank])
        self._ranks.wait()
        torch.add(self._slots[0], self._slots[1], out=self._sum)
        for slot in self._slots[2:]:
            self._sum += slot
        self._ranks.wait()  # nobody writes the next vector before all have read this one
        return self._sum


def shared_sum(ranks: Ranks, length: int, dtype: torch.dtype) -> SharedSum | None:
    """Return a sum through memory; None where the ranks are on several machines, or memory is short."""
    need = 2 * ranks.size * length * dtype.itemsize
    room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > need  # what is not there ends a process without an exception
    hosts, roomy = zip(*ranks.gather((socket.gethostname(), room)), strict=True)
    name = ranks.broadcast(f"textrl-{uuid.uuid4().hex}")
    return SharedSum(ranks, MEMORY / name, length, dtype) if len(set(hosts)) == 1 and all(roomy) else None
