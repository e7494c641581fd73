"""Several processes (ranks) that train one policy together: their communication, and errors when one of them is gone.

`torchrun` starts them, Hugging Face Accelerate joins them: gloo on CPUs, NCCL on GPUs.  Each writes its own texts and learns from them;
what they exchange are gradients, see `engine`, and sums.  A process that was not started by torchrun is the only rank, and nothing here has
any effect.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.distributed.tensor import DTensor

from textrl_env.utils.optional_imports import optional_import

from .launcher import check_launcher
from .ranks import _AGAIN, RankError, Ranks

TIMEOUT = timedelta(minutes=30)  # of one wait for the others; the longest is that for a base policy to be pretrained


_INTERRUPTED = "Ctrl-C"
_NODE = os.environ.get("GROUP_RANK", "")  # torchrun's number of this machine; host names may be equal, and say nothing
_LOST = ("gloo", "nccl", "connection", "socket", "broken pipe", "timed out")  # in what torch says when another process does not answer


class _Group(Ranks):
    """Ranks that torchrun started.

    Raises:
        ImportError: Accelerate is not installed.
    """

    def __init__(self) -> None:
        with optional_import("scale", f"WORLD_SIZE={os.environ['WORLD_SIZE']}: training on several processes needs accelerate"):
            from accelerate import PartialState
        self._state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT, **_own_store())  # takes LOCAL_RANK's GPU
        self.rank, self.size, self.device = self._state.process_index, self._state.num_processes, self._state.device
        assert self.size == int(os.environ["WORLD_SIZE"])
        self._store: Any = torch.distributed.distributed_c10d._get_default_store()
        atexit.register(self._state.destroy_process_group)  # left to the interpreter's end, gloo's threads now and then abort the process
        self._store.set(f"textrl/process/{self.rank}", f"{_NODE} {os.getpid()}")
        self.wait()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ended)  # torchrun sends it to those that are left

    def gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.size
        with self.together():
            torch.distributed.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, value: Any) -> Any:
        box = [value]
        with self.together():
            torch.distributed.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def wait(self) -> None:
        with self.together():
            self._state.wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def share_weights(self, module: nn.Module) -> None:
        with self.together():
            for tensor in module.state_dict().values():
                if not isinstance(tensor, DTensor):  # what was read in parts is of the same files
                    torch.distributed.broadcast(tensor, 0)

    def numbers(self, values: ArrayLike) -> np.ndarray:
        own = torch.as_tensor(np.asarray(values, np.float64)).to(self.device)
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        with self.together():
            torch.distributed.all_gather(gathered, own)
        return torch.stack(gathered).cpu().numpy()  # (R, ...)

    def say_once(self, message: str) -> bool:
        try:
            return int(self._store.add(f"textrl/said/{hashlib.sha256(message.encode()).hexdigest()}", 1)) == 1
        except RuntimeError:  # torchrun is gone, and the store with it
            return self.is_main

    def fail(self, message: str) -> None:
        try:
            self._store.set(f"textrl/failed/{self.rank}", message)
        except RuntimeError:  # as above
            return

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            said = str(error)
            if not (isinstance(error, torch.distributed.DistError) or any(word in said.lower() for word in _LOST)):
                raise
            self._end(f" ({said.splitlines()[0]})")

    def _ended(self, *_: Any) -> None:
        self._end("")

    def _end(self, detail: str) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the reason is told first
        why = self._who_is_gone()
        if why.endswith(_INTERRUPTED):
            raise KeyboardInterrupt
        error = RankError(f"{why}; {_AGAIN}{detail}")
        error.told = " stopped: " in why
        raise error

    def _who_is_gone(self) -> str:
        others = [rank for rank in range(self.size) if rank != self.rank]
        for _ in range(20):
            for rank in others:
                if (why := self._why_gone(rank)) is not None:
                    return why
            time.sleep(0.1)  # a dead process is there until torchrun looks after it
        return "another rank is gone, or torchrun was told to end"

    def _why_gone(self, rank: int) -> str | None:
        try:
            if self._store.check([f"textrl/failed/{rank}"]):
                return f"rank {rank} stopped: {self._store.get(f'textrl/failed/{rank}').decode()}"
            node, process = self._store.get(f"textrl/process/{rank}").decode().split(" ")
        except RuntimeError:  # as above
            return "torchrun is gone"
        if not node or node != _NODE or _alive(int(process)):
            return None
        return f"rank {rank} (process {process}) is gone"


def _own_store() -> dict[str, Any]:
    """Return where processes that were started again meet: torchrun's store still holds the addresses of those that are gone."""
    if not started_again():
        return {}
    store, rank, size = next(torch.distributed.rendezvous("env://", timeout=TIMEOUT))
    return {"store": torch.distributed.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store), "rank": rank, "world_size": size}


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def tell_others(message: str, interrupted: bool = False) -> bool:
    """Tell the other ranks, if there are any, why this process ends; return whether it is the first to tell the user so."""
    if not ranks.cache_info().currsize:
        return True
    ranks().fail(_INTERRUPTED if interrupted else message)
    return ranks().say_once(message)


def started_again() -> bool:
    """Return whether torchrun started this process in the place of one that was gone, see its `--max-restarts`."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0


@lru_cache(maxsize=1)
def ranks() -> Ranks:
    """Return this process's rank; the first call connects the ranks that torchrun started.

    Raises:
        ValueError: See `check_launcher`.
        ImportError: There are several, and Accelerate is not installed.
    """
    check_launcher()
    return _Group() if int(os.environ.get("WORLD_SIZE") or 1) > 1 else Ranks()
