"""How many threads torch should use."""

from __future__ import annotations

from time import perf_counter

import torch


def choose_threads(parameters: int = 1_000_000) -> int:
    """Set torch to one thread or to all cores, whichever multiplies matrices like those of a model faster right now, and return it.

    Small models gain little from a second thread, and beside another busy process its spinning costs up to tenfold.

    Args:
        parameters: Of the model; matrices of 128 columns stand for a million, and their width for others grows as the cube root.
    """
    width = round(128 * (max(parameters, 1_000_000) / 1_000_000) ** (1 / 3))
    best = min({1, torch.get_num_threads()}, key=lambda threads: _seconds(threads, width))
    torch.set_num_threads(best)
    return best


def _seconds(threads: int, width: int) -> float:
    torch.set_num_threads(threads)
    a, b = torch.randn(1024, width), torch.randn(width, 4 * width)
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
