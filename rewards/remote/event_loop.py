"""Asynchronous work called from ordinary code: an event loop in a thread of its own.

A loop of one's own works where another one already runs, as in a notebook, and keeps connections open between calls.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def in_background(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on the background loop."""
    return asyncio.run_coroutine_threadsafe(coroutine, background_loop())


def wait_for(future: Future[T]) -> T:
    """Return what came of a coroutine in the background.

    Whatever interrupts the wait, Ctrl-C above all, cancels the coroutine too.
    """
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this process, which runs in a daemon thread from its first use on."""
    with _starting:
        return _loop_of(os.getpid())


@cache  # for good: a loop that is dropped in a forked child would be torn down there
def _loop_of(process: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop


def _after_fork() -> None:
    global _starting
    _starting = threading.Lock()  # another thread may have held it


_starting = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
