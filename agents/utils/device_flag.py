"""The flag `--device`; torch is imported only where it is given, so that help is quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from rewards.utils.devices import AUTO, auto_device


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """A command that runs models.

    Attributes:
        device: Where models compute: `auto` (a CUDA GPU if there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`, or another that
            torch knows.
    """

    device: str = AUTO


def on_device(command: Callable[[Any], None]) -> Callable[[Any], None]:
    """Have whatever a command loads compute on the device of its flags."""

    @wraps(command)
    def run(config: OnDevice) -> None:
        with auto_device(config.device):
            command(config)

    return run
