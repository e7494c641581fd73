"""How many threads torch should use."""

from __future__ import annotations

from time import perf_counter

import torch


def choose_threads() -> int:
    """Set torch to one thread or to all cores, whichever multiplies small matrices faster right now, and return it.

    Small models gain little from a second thread, and beside another busy process its spinning costs up to tenfold.
    """
    counts = {1, torch.get_num_threads()}
    best = min(counts, key=_seconds)
    torch.set_num_threads(best)
    return best


def _seconds(threads: int) -> float:
    torch.set_num_threads(threads)
    a, b = torch.randn(1024, 128), torch.randn(128, 512)
    a @ b
    times = []
    for _ in range(30):
        began = perf_counter()
        a @ b
        times.append(perf_counter() - began)
    return sorted(times)[len(times) // 2]


def cpu_kind() -> str:
    """Return the instructions that torch's kernels use here; with others, sums are rounded in another order."""
    return torch.backends.cpu.get_cpu_capability()
