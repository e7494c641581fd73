"""Ctrl-C and SIGTERM in a long training: the first asks it to save and stop, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

_SAME_KEY = 1.0  # seconds; torchrun passes on the Ctrl-C that its processes got already


class StopRequest:
    """Whether the user asked to stop."""

    def __init__(self, what: str, passed_on: bool) -> None:
        self._what, self._passed_on = what, passed_on
        self._asked: float | None = None

    def __bool__(self) -> bool:
        return self._asked is not None

    def handle(self, number: int, frame: Any) -> None:
        """Take note of a signal; the second one raises KeyboardInterrupt."""
        if self._asked is None:
            self._asked = monotonic()
            # Not print: the signal may have come in the middle of one
            os.write(2, f"\nstopping after this {self._what}, to save; once more: stop at once\n".encode())
        elif not (self._passed_on and monotonic() - self._asked < _SAME_KEY):
            raise KeyboardInterrupt


@contextmanager
def stop_request(what: str, several: bool = False) -> Iterator[StopRequest]:
    """Yield an object that is true from the first Ctrl-C or SIGTERM on, while the block runs.

    Args:
        what: A step of the work, after which it is looked at.
        several: Whether torchrun started this process; then SIGTERM, which says that another one is gone, stays as it is.
    """
    request = StopRequest(what, several)
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield request
        return
    numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request.handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopCallback(BaseCallback):
    """Ends a training when asked to."""

    def __init__(self, request: StopRequest) -> None:
        super().__init__()
        self.request = request

    def _on_step(self) -> bool:
        return not self.request
