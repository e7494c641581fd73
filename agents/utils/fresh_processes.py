"""Processes that share nothing with this one, and start with the imports loaded."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def fresh_processes() -> Any:
    """Return the context of `multiprocessing` that forks them from a server, or spawns them where there is none."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # the server inherits it; threads that spin would slow the others
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.preloaded"])
    return context


def fresh_pool(processes: int) -> ProcessPoolExecutor:
    """Return a pool of them, with the environment of now: the server's is that of its start."""
    return ProcessPoolExecutor(processes, fresh_processes(), _set_environment, (dict(os.environ),))


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
