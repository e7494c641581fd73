"""Annotators who answer without pause, and a server that is killed while they do: `python -m rewards.feedback.load_test`.

Makes a study, starts `textrl feedback serve`, and lets annotators compare pairs over HTTP as browsers would: post the form, follow to the
next page.  Half-way the server is killed with SIGKILL and started again.  At the end every answer that the server acknowledged must be in
the database, and no item may have more answers than wanted.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import sqlalchemy as sa
import tyro

from .items import Item
from .manage_study import create_study
from .schema import answers, assignments
from .store import FeedbackStore
from .study import Study

_TICKET = b'name="ticket" value="'


@dataclass(frozen=True)
class Load:
    """Who answers what for how long.

    Attributes:
        items: Pairs of the study.
        annotators: People who answer at once.
        seconds: Seconds of answering; half before the server is killed, half after.
        overlap: Answers wanted for each pair.
        words: Words of each text.
    """

    items: int = 100_000
    annotators: int = 50
    seconds: float = 60.0
    overlap: int = 2
    words: int = 50


@dataclass
class LoadResult:
    """What came of it.

    Attributes:
        seconds: Time in which annotators answered and the server ran.
        waits: Seconds from each answer to the next page, of answers during which the server was not killed.
        server_cpu: Processor seconds of the server in that time; NaN where the system does not tell.
        client_cpu: Of the annotators.
        outage: Seconds from the kill until the next server listens.
        acknowledged: Choice by ticket of every answer that the server said it had stored.
        missing: How many of these are not in the database, or differ there.
        excess: Items with more answers than wanted.
    """

    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    server_cpu: float = 0.0
    client_cpu: float = 0.0
    outage: float = 0.0
    acknowledged: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    excess: int = 0

    def describe(self) -> str:
        """Return the figures as a table."""
        number = max(len(self.waits), 1)
        median, most = np.quantile(self.waits or [np.nan], [0.5, 0.95])
        return "\n".join(
            [
                f"{len(self.waits) / self.seconds:8.1f} answers a second, each with its next page",
                f"{median:8.3f} s median wait from an answer to the next page",
                f"{most:8.3f} s at 95%",
                f"{1e3 * self.server_cpu / number:8.2f} ms processor time of the server for each answer, with its next page",
                f"{1e3 * self.client_cpu / number:8.2f} ms of the annotators' side, on the same machine",
                f"{self.outage:8.2f} s from the kill until the next server listens",
                f"{len(self.acknowledged):8} answers acknowledged, {self.missing} of them lost",
                f"{self.excess:8} items with more answers than wanted",
            ]
        )


class _Server:
    """A process of `textrl feedback serve`."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        command = [sys.executable, "-m", "textrl_env", "feedback", "serve", str(folder), "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {self.process.wait()} before it listened")
        self.port = int(urlsplit(line.split()[-1]).port or 0)

    def cpu(self) -> float:
        """Return its processor seconds so far."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        if not stat.is_file():
            return float("nan")
        return sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End it without warning (SIGKILL)."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class _Annotator:
    """A person with a browser: one connection, one cookie, one open form."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.draw = random.Random(seed)
        self.cookie = b""
        self.form: tuple[str, str] | None = None  # ticket and choice of a form whose answer was not acknowledged
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def answer_until(self, end: float, port: int, result: LoadResult) -> None:
        """Answer until a time of `time.perf_counter`, or until the server goes away."""
        try:
            self.streams = await asyncio.open_connection("127.0.0.1", port)
            if not self.cookie:
                head, _ = await self._request(b"POST", b"/enter", f"name={self.name}".encode())
                self.cookie = head.split(b"set-cookie: ")[1].split(b";")[0]
            while time.perf_counter() < end:
                if self.form is None and not await self._open_form():
                    return
                assert self.form is not None
                ticket, choice = self.form
                start = time.perf_counter()
                head, _ = await self._request(b"POST", b"/answer", f"ticket={ticket}&choice={choice}".encode())
                if b" 303 " not in head.split(b"\r\n", 1)[0]:
                    raise RuntimeError(f"an answer was refused: {head.decode()}")
                result.acknowledged[ticket] = choice
                more = await self._open_form()
                result.waits.append(time.perf_counter() - start)
                if not more:
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # killed: the open form is sent again to the next server
        finally:
            if self.streams is not None:
                self.streams[1].close()

    async def _open_form(self) -> bool:
        """Load the page; return whether it asks something."""
        self.form = None
        _, page = await self._request(b"GET", b"/question")
        if _TICKET not in page:
            return False
        ticket = page.split(_TICKET, 1)[1].split(b'"', 1)[0].decode()
        self.form = ticket, self.draw.choice(("a", "b", "tie"))
        return True

    async def _request(self, method: bytes, path: bytes, body: bytes = b"") -> tuple[bytes, bytes]:
        assert self.streams is not None
        reader, writer = self.streams
        lines = [method + b" " + path + b" HTTP/1.1", b"Host: 127.0.0.1", b"Cookie: " + self.cookie]
        lines += [b"Content-Type: application/x-www-form-urlencoded", b"Content-Length: " + str(len(body)).encode()] if body else []
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        return head, await reader.readexactly(length)


def run_load(config: Load, folder: Path) -> LoadResult:
    """Make a study in a folder that is not there, let people answer, kill the server half-way, and check what is stored."""
    draw = random.Random(0)
    words = [f"word{i}" for i in range(1000)]

    def written(number: int) -> str:
        return f"{number} " + " ".join(draw.choices(words, k=config.words))

    items = [Item(written(i), (written(i), written(i)), ("new", "old")) for i in range(config.items)]
    create_study(folder, Study(overlap=config.overlap), items)
    people = [_Annotator(f"person{i}", i) for i in range(config.annotators)]
    result, port, killed = LoadResult(), 0, 0.0
    for last in (False, True):
        server = _Server(folder, port)
        port = server.port
        try:
            asyncio.run(_answer(people, server, config.seconds / 2, result, killed, last))
        finally:
            server.kill()
        killed = time.perf_counter()
    _check(config, folder, result)
    return result


async def _answer(people: list[_Annotator], server: _Server, seconds: float, result: LoadResult, killed: float, last: bool) -> None:
    """Let all answer for some seconds; in the last turn wait for what is under way, else kill the server in the midst of it."""
    start, cpu, own_cpu = time.perf_counter(), server.cpu(), time.process_time()
    if killed:
        result.outage = start - killed
    end = start + seconds if last else float("inf")
    tasks = [asyncio.create_task(person.answer_until(end, server.port, result)) for person in people]
    if not last:
        await asyncio.wait(tasks, timeout=seconds)
        result.server_cpu += server.cpu() - cpu
        server.kill()
    await asyncio.gather(*tasks)
    if last:
        result.server_cpu += server.cpu() - cpu
    result.seconds += time.perf_counter() - start
    result.client_cpu += time.process_time() - own_cpu


def _check(config: Load, folder: Path, result: LoadResult) -> None:
    """Count what is missing in the database of what was acknowledged, and items that were answered too often."""
    what = (assignments.c.ticket, assignments.c.item_id, assignments.c.turn, assignments.c.shown_order, answers.c.value)
    store = FeedbackStore(folder)
    with store.engine.connect() as db:
        rows = db.execute(sa.select(*what).join(answers)).all()
    store.close()
    stored = {row.ticket: _clicked(json.loads(row.value)["choice"], json.loads(row.shown_order)) for row in rows}
    result.missing = sum(stored.get(ticket) != choice for ticket, choice in result.acknowledged.items())
    result.excess = sum(number > config.overlap for number in Counter(row.item_id for row in rows if row.turn == 0).values())


def _clicked(choice: str, order: list[int]) -> str:
    """Return the choice by the places on the page."""
    return "ab"[order.index("ab".index(choice))] if choice in "ab" else choice


def main(config: Load) -> None:
    """Run it in a temporary folder, and print the figures.

    Raises:
        SystemExit: An acknowledged answer was lost, or an item answered too often.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = run_load(config, Path(folder) / "study")
    print(result.describe())
    if result.missing or result.excess:
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Load, description=__doc__))
