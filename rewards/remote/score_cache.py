"""A cache of scores by content: in memory while a call fails, and on disk if a file is given."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import sqlite3
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textrl_env.reward_model import RewardError

from .event_loop import in_background, wait_for

_APPLICATION = 0x7478726C  # "txrl", in the header of our files
_TABLE = "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID"

Add = Callable[[bytes, float], None]
Ask = Callable[[list[int], Add], Awaitable[None]]


def content_key(*content: Any) -> bytes:
    """Return the SHA-256 of plain data, 32 bytes."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).digest()


@dataclass(eq=False)
class BegunScores:
    """Scores of these keys that are on their way; `others` are all that are, this one among them."""

    keys: tuple[bytes, ...]
    future: Future[list[float]]
    others: list[BegunScores]

    def done(self) -> bool:
        """Return whether they have come, or failed to."""
        return self.future.done()

    def cancel(self) -> None:
        """Ask for no more, whoever waits for them next asks anew."""
        self.future.cancel()
        if self in self.others:
            self.others.remove(self)


class ScoreCache:
    """Scores by content key.

    Without a file the scores of a call that failed are kept until it is made again and ends well.  With one, every score
    is kept for good from the moment it arrives, and several processes may share the file (SQLite, write-ahead log).  NaN, which stands
    for "does not apply", is asked for again.

    Args:
        path: The file, or None.

    Raises:
        ValueError: The file is damaged, or is something else.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._kept: dict[bytes, float] = {}
        self._begun: list[BegunScores] = []  # oldest first
        self._asking: dict[bytes, asyncio.Future[None]] = {}  # done when the call that asks for the key has ended
        self._lock = threading.Lock()  # of the connection, which two threads use
        self._connections: dict[int, sqlite3.Connection] = {}  # by process: SQLite forbids to take one through a fork
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection()
            except RewardError as error:
                raise ValueError(str(error)) from error

    def begin(self, keys: Sequence[bytes], ask: Ask) -> BegunScores:
        """Begin what `complete` does, which returns it when it is called with the same keys."""
        begun = BegunScores(tuple(keys), in_background(self._complete(keys, ask)), self._begun)
        self._begun.append(begun)
        return begun

    def complete(self, keys: Sequence[bytes], ask: Ask) -> list[float]:
        """Return the score of every key, and get those that are not known.

        Args:
            keys: Content keys; equal ones are asked for once.
            ask: Awaited as `ask(positions, add)` with the positions in `keys` of what is not known; it calls
                `add(key, score)` for each as it arrives.

        Raises:
            RewardError: The file cannot be read or written.
        """
        begun = next((begun for begun in self._begun if begun.keys == tuple(keys)), None)
        if begun is None:
            return wait_for(in_background(self._complete(keys, ask)))
        self._begun.remove(begun)
        return wait_for(begun.future)

    async def _complete(self, keys: Sequence[bytes], ask: Ask) -> list[float]:
        scores = self._known(keys)

        def add(key: bytes, score: float) -> None:
            scores[key] = score
            if self.path is not None and not math.isnan(score):  # to SQLite it is NULL, which the column does not take
                self._execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", (key, score))

        try:
            while missing := {key: i for i, key in reversed([*enumerate(keys)]) if key not in scores}:
                others = {self._asking[key] for key in missing if key in self._asking}
                if own := {key: i for key, i in missing.items() if key not in self._asking}:
                    await self._ask(own, ask, add)
                if others:
                    await asyncio.wait(others)
                    scores.update(self._known([*missing]))
        except BaseException:
            self._kept.update(scores)
            raise
        for key in keys:
            self._kept.pop(key, None)
        return [scores[key] for key in keys]

    async def _ask(self, missing: dict[bytes, int], ask: Ask, add: Add) -> None:
        """Ask for keys; what comes into a file is asked for by one call at a time."""
        ended = asyncio.get_running_loop().create_future()
        asked = missing if self.path is not None else {}
        self._asking.update(dict.fromkeys(asked, ended))
        try:
            await ask(sorted(missing.values()), add)
        finally:
            for key in asked:
                del self._asking[key]
            ended.set_result(None)

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        known = {key: self._kept[key] for key in keys if key in self._kept}
        if self.path is not None:
            for key in {*keys} - {*known}:
                known.update((key, score) for (score,) in self._execute("SELECT score FROM scores WHERE key = ?", (key,)))
        return known

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            try:
                return self._connection().execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise self._broken(error) from error

    def _connection(self) -> sqlite3.Connection:
        process = os.getpid()
        if process not in self._connections:
            try:
                self._connections[process] = connection = self._open()
                weakref.finalize(self, _close, connection, process)
            except sqlite3.Error as error:
                raise self._broken(error) from error
        return self._connections[process]

    def _open(self) -> sqlite3.Connection:
        assert self.path is not None
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and application != _APPLICATION:
                raise sqlite3.DatabaseError("a database of something else")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(_TABLE)
        except BaseException:
            connection.close()
            raise
        return connection

    def _broken(self, error: sqlite3.Error) -> RewardError:
        return RewardError(f"cache {self.path} is no cache of scores that can be used ({error}): delete it, or give another file")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connections": {}, "_lock": None, "_begun": [], "_asking": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _close(connection: sqlite3.Connection, process: int) -> None:
    if os.getpid() == process:
        connection.close()
