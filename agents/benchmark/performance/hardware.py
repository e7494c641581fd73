"""Operations that a workload needs, operations per second that this machine reaches, and the memory of a process."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel
from transformers.pytorch_utils import Conv1D

from .speed_workload import Speed, model_config

_STATUS = Path("/proc/self/status")


def rollout_operations(speed: Speed) -> float:
    """Return the floating-point operations of a rollout's matrix products, each token read once, and a prompt of a group once."""
    config = lm_config(speed)
    response, prompt = speed.new_tokens - 1, speed.prompt  # the last token is never read
    groups = speed.episodes // speed.group
    reads = groups * prompt + speed.episodes * response
    # Scores and sums over the tokens so far
    looks = groups * prompt * (prompt + 1) / 2 + speed.episodes * response * (prompt + (response + 1) / 2)
    attention = 4 * config.num_hidden_layers * config.hidden_size * looks
    return float(2 * (_weights(config) * reads + config.hidden_size * config.vocab_size * speed.new_tokens * speed.episodes) + attention)


def update_operations(speed: Speed) -> float:
    """Return the floating-point operations of an update's matrix products, forward and backward, a prompt of a group read once an epoch."""
    config = lm_config(speed)
    prompt, response, groups = speed.prompt, speed.new_tokens, speed.episodes // speed.group
    reads = groups * prompt + speed.episodes * response
    head = config.hidden_size * config.vocab_size * response * speed.episodes  # it reads responses only
    squares = groups * prompt**2 + speed.episodes * (2 * prompt + response) * response  # scores and sums, whole squares
    return 6.0 * speed.epochs * (_weights(config) * reads + head + 2 * config.num_hidden_layers * config.hidden_size * squares)


def lm_config(speed: Speed) -> Any:
    """Return the model's configuration as transformers has it."""
    return AutoConfig.for_model(**model_config(speed))


def _weights(config: Any) -> int:
    """Return how many numbers the matrices have that every token goes through."""
    with torch.device("meta"):
        trunk = AutoModel.from_config(config)
    return sum(layer.weight.numel() for layer in trunk.modules() if isinstance(layer, (torch.nn.Linear, Conv1D)))


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
