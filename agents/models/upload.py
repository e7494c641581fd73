"""Numbers of the host on their way to a device: many arrays, one copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

_ALIGNED = 8  # bytes: the largest numbers here


class Upload:
    """Arrays that go to a device together, when the first of them is asked for: each copy by itself would stop a GPU's host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arrays: list[np.ndarray] = []
        self._tensors: list[torch.Tensor] = []

    def add(self, array: np.ndarray | None) -> Callable[[], Any]:
        """Take an array along; return the function that returns it as a tensor there, None for None."""
        if array is None:
            return _nothing
        number = len(self._arrays)
        self._arrays.append(array)
        return lambda: self._tensor(number)

    def _tensor(self, number: int) -> torch.Tensor:
        if number >= len(self._tensors):
            self._tensors += to_device(self._device, self._arrays[len(self._tensors) :])
        return self._tensors[number]


def to_device(device: torch.device | str, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Return arrays as tensors on a device, by one copy; those on the CPU share the arrays' memory."""
    if torch.device(device).type == "cpu":
        return [torch.as_tensor(array) for array in arrays]
    starts = np.cumsum([0] + [-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays])
    joined = np.zeros(starts[-1], np.uint8)
    for start, array in zip(starts[:-1], arrays, strict=True):
        joined[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = torch.from_numpy(joined).to(device)
    kinds = [torch.from_numpy(np.empty(0, array.dtype)).dtype for array in arrays]
    return [
        there[start : start + array.nbytes].view(kind).view(array.shape)
        for start, array, kind in zip(starts[:-1], arrays, kinds, strict=True)
    ]


def _nothing() -> None:
    return None
