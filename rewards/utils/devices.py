"""Which device a model computes on: one reading of names for every argument and flag, and generators that are seeded there.

torch is imported when it is needed only, so that commands without a model start fast.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

AUTO = "auto"
_VARIABLE = "TEXTRL_DEVICE"  # what "auto" stands for in this process and in those that it starts


def get_device(device: torch.device | str = AUTO) -> torch.device:
    """Return the device of a name.

    Args:
        device: `"auto"`: what the environment variable TEXTRL_DEVICE or the block of `auto_device` names; else, as in
            Stable-Baselines3, a CUDA GPU if there is one and the CPU if not.  Or a device of torch: `"cpu"`, `"cuda"`, `"cuda:1"`,
            `"mps"` (Apple), `"xpu"` (Intel), one that a package adds.

    Raises:
        ValueError: There is no such device here; the message says why.
    """
    import torch

    asked = f"device={str(device)!r}"
    if str(device) == AUTO and os.environ.get(_VARIABLE, AUTO) != AUTO:
        device = os.environ[_VARIABLE]
        asked = f"device='auto', which {_VARIABLE} or --device says is {device!r}"
    if str(device) == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        module = torch.get_device_module(found)
    except RuntimeError as error:
        raise ValueError(
            f"{asked}: torch knows no such device; name 'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or another of torch's"
        ) from error
    count = module.device_count() if module.is_available() else 0
    if (found.index or 0) >= count:
        reason = _why_none(found.type) if not count else f"there are {count}, {found.type}:0 to {found.type}:{count - 1}"
        raise ValueError(f"{asked}: {reason}; or pass 'auto' (textrl: --device auto) for what there is")
    return found


def _why_none(kind: str) -> str:
    """Say why torch has no device of a kind."""
    import torch

    built = {"cuda": torch.version.cuda or torch.version.hip, "mps": torch.backends.mps.is_built()}.get(kind, True)
    if not built:
        return f"this torch ({torch.__version__}) is built without {kind}; install one with it, see https://pytorch.org/get-started"
    see = {"cuda": "look at nvidia-smi and CUDA_VISIBLE_DEVICES", "mps": "it needs macOS 12.3 and a GPU of Apple's or AMD's"}
    return f"torch sees no {kind} device here; {see.get(kind, 'look at its driver')}"


@contextmanager
def auto_device(device: str) -> Iterator[None]:
    """Let `"auto"` stand for this device within the block, in this process and in those that start meanwhile.

    Raises:
        ValueError: There is no such device here.
    """
    before = os.environ.get(_VARIABLE)
    if device != AUTO:
        get_device(device)
        os.environ[_VARIABLE] = device
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators of the CPU and of a device, as `torch.manual_seed` does; after the block they are as before it.

    Those of other devices are not touched.
    """
    import torch

    there = torch.device(device)
    devices = [] if there.type == "cpu" else [there]
    with torch.random.fork_rng(devices, device_type=there.type if devices else "cuda"):
        torch.default_generator.manual_seed(seed)
        for one in devices:
            set_generator_state(one, torch.Generator(one).manual_seed(seed).get_state())
        yield


def generator_state(device: torch.device) -> torch.Tensor:
    """Return the state of torch's global generator of a device, a tensor of bytes on the CPU."""
    import torch

    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def set_generator_state(device: torch.device, state: torch.Tensor) -> None:
    """Restore what `generator_state` returned."""
    import torch

    torch.set_rng_state(state) if device.type == "cpu" else torch.get_device_module(device).set_rng_state(state, device)


@cache
def has_float64(device: torch.device) -> bool:
    """Return whether a device computes in double precision; Apple's GPUs and some of Intel's do not."""
    import torch

    try:
        return bool(torch.zeros(1, dtype=torch.float64, device=device).sum().item() == 0)
    except (TypeError, RuntimeError):
        return False
