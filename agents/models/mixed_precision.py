"""Mixed precision whose gradients are scaled inside `loss.backward()`, so that no training loop needs to change."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16", "float16"]


def precision_of(name: str) -> torch.dtype | None:
    """Return the type that autocast computes in; None for float32.

    Raises:
        ValueError: There is no such precision.
    """
    known = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"precision={name!r}: must be one of {', '.join(known)}")
    return known[name]


_SCALE = 1024.0  # a power of two: scaling is exact


class _ScaledBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad * _SCALE


def scale_gradients(module: nn.Module) -> None:
    """Divide every parameter's gradient by what `scaled` multiplies: float16 has no room for small gradients in between."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda grad: grad / _SCALE)


def scaled(*outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the tensors unchanged; the gradients that come back through them are 1024 times as large."""
    return tuple(_ScaledBackward.apply(output) if output.requires_grad else output for output in outputs)
