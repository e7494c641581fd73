"""Operations that a workload needs, operations per second that this machine reaches, and the memory of a process."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from .speed_workload import Speed

_STATUS = Path("/proc/self/status")


def rollout_operations(speed: Speed) -> float:
    """Return the floating-point operations of a rollout's matrix products, each token read once."""
    read = speed.prompt + speed.new_tokens - 1  # the last token is never read
    attention = 2 * speed.layers * speed.width * read * (read + 1)  # scores and sums over the tokens so far, half a square each
    per_text = 2 * (_weights(speed) * read + speed.width * speed.vocabulary * speed.new_tokens) + attention
    return float(speed.episodes * per_text)


def update_operations(speed: Speed) -> float:
    """Return the floating-point operations of an update's matrix products, forward and backward."""
    length = speed.prompt + speed.new_tokens
    per_text = _weights(speed) * length + speed.width * speed.vocabulary * speed.new_tokens  # the head reads responses only
    attention = 2 * speed.layers * speed.width * length * length  # scores and sums
    return 6.0 * speed.epochs * speed.episodes * (per_text + attention)


def _weights(speed: Speed) -> int:
    block = 2 if speed.architecture == "gpt2" else 3  # matrices of the block that is four times as wide; Llama's is gated
    return speed.layers * (4 + block * 4) * speed.width**2


def card(device: str) -> str:
    """Return the name of a device: that of the GPU, or how many cores of what processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} cores of {platform.machine()}" if device == "cpu" else device


def matmul_peak(precision: str, size: int = 2048, repeats: int = 5) -> float:
    """Return the operations per second of a square matrix product, the fastest of a few."""
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size).to(kind) for _ in range(2))
    best = np.inf
    for _ in range(repeats + 1):
        began = perf_counter()
        a @ b
        best = min(best, perf_counter() - began)
    return 2.0 * size**3 / best


def resident_mib(device: str = "cpu") -> float:
    """Return the memory that this process holds now (on macOS the most it ever held); of a GPU, what torch's allocator has given out."""
    return torch.cuda.memory_allocated(device) / 2**20 if device.startswith("cuda") else _status_mib("VmRSS")


def peak_mib(device: str = "cpu") -> float:
    """Return the most memory that this process ever held; of a GPU, the most that torch's allocator gave out.

    On a CPU read from /proc: getrusage on Linux counts the peak of the process that started this one as well.
    """
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.startswith("cuda") else _status_mib("VmHWM")


def _status_mib(kind: str) -> float:
    if not _STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))
