"""Mixed precision: which types the trunk may compute in, and whether the hardware does."""

from __future__ import annotations

import platform
import warnings
from functools import cache
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def precision_of(name: str) -> torch.dtype | None:
    """Return the type that autocast computes in; None for float32.

    Raises:
        ValueError: There is no such precision, or no algorithm could train in it.
    """
    known = {"float32": None, "bfloat16": torch.bfloat16}
    if name == "float16":
        raise ValueError(
            "precision='float16': small gradients round to 0 in it unless a scaler multiplies every loss, and the train() of "
            "Stable-Baselines3 has none: use 'bfloat16', which has the range of float32 "
            "(of a saved policy: load(..., policy_kwargs={'precision': 'bfloat16'}))"
        )
    if name not in known:
        raise ValueError(f"precision={name!r}: must be one of {', '.join(known)}")
    return known[name]


@cache
def warn_without_bfloat16(device: torch.device) -> None:
    """Warn, once for each device, if it computes in bfloat16 without instructions for it."""
    lacking = lacking_for_bfloat16(device)
    if lacking is not None:
        warnings.warn(
            f"precision='bfloat16' on {lacking}: it is computed piecemeal there, and updates were up to 9 times as slow as in float32; use "
            "precision='float32' (textrl train: --precision float32)",
            stacklevel=2,
        )


def lacking_for_bfloat16(device: torch.device) -> str | None:
    """Return what a device is without which it is slow in bfloat16; None if it lacks nothing, or is of a kind that is not known."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 8 else f"a GPU of compute capability {major}.{minor}, where products of bfloat16 need 8.0"
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    # torch.cpu.get_capabilities says the same, from torch 2.10 on
    has = any(getattr(torch.cpu, name, lambda: True)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return None if has else "a processor with neither avx512_bf16 nor amx_bf16"
