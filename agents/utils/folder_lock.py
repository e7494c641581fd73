"""One process at a time in a folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from textrl_env.utils.files import write_json


@contextmanager
def only_process_in(folder: Path) -> Iterator[None]:
    """Hold a folder while the block runs.

    The operating system gives the lock back when a process ends, however it ends, so that none is left over.  On network file systems it
    holds between the machines as far as the mount supports `flock`.

    Raises:
        ValueError: Another process holds it; the message says which one, and on which machine.
        OSError: The file system knows no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / ".lock", timeout=0), folder / ".lock.holder"
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{folder} is in use by {_holder(holder)}: wait until it ends, or use another folder") from error
    except NotImplementedError as error:
        raise OSError(f"{folder} lies on a file system without locks ({error}): use a folder on another one") from error
    try:
        since = datetime.now(timezone.utc).isoformat(" ", "seconds")
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(file: Path) -> str:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return f"process {known['pid']} on {known['host']}, since {known['since']}"
    except (OSError, ValueError, KeyError):  # it is just starting or ending
        return "another process"
