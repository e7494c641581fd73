"""Requests to a server that may fail, stall or restart: bounded concurrency, time-outs, retries, patience.

Connection errors, time-outs, 429 (with Retry-After) and 5xx are tried again with growing waits and jitter, an answer that is
no JSON three times in all, other answers never.  While the server is down, `Breaker` probes it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from textrl_env.reward_model import RewardError
from textrl_env.utils.optional_imports import optional_import

from .circuit_breaker import Breaker, backoff
from .event_loop import background_loop
from .request_headers import checked_headers, checked_url, expanded

T = TypeVar("T")
Post = Callable[[Any], Awaitable[Any]]

_IDLE = 4.0  # seconds that an idle connection is kept: less than the 5 of uvicorn, so that it is us who close it
_TRIES = 3  # answers that are no JSON
_FIXES = {
    401: "check the header with the token",
    403: "check the header with the token",
    404: "check the path of the url",
    405: "check the path of the url",
    413: "lower batch_size",
}


class Endpoint:
    """An address that JSON is posted to.

    Args:
        url: The address.
        headers: Sent with each request; `${NAME}` stands for an environment variable.
        timeout: Seconds that one request may take in all, above 0.
        concurrency: Requests under way at once, of all calls together, at least 1.
        patience_seconds: How long a server that fails is waited for, at least 0.

    Raises:
        ImportError: httpx2 is not installed.
        TypeError: A header is no string.
        ValueError: An argument is out of range, or holds a secret as it is.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None, timeout: float, concurrency: int, patience_seconds: float) -> None:
        if not timeout > 0 or concurrency < 1 or not patience_seconds >= 0:
            raise ValueError(
                f"timeout={timeout}, concurrency={concurrency}, patience_seconds={patience_seconds}: "
                "they must be above 0, at least 1 and at least 0"
            )
        _httpx()
        self.url, self.headers = checked_url(url), checked_headers(headers)
        self.timeout, self.concurrency, self.patience_seconds = timeout, concurrency, patience_seconds
        self._lines: dict[int, _Line] = {}  # by process: connections do not survive a fork

    async def each(self, items: Sequence[T], work: Callable[[Post, T], Awaitable[None]]) -> None:
        """Run `await work(post, item)` for every item, `concurrency` at a time, and wait for the last.

        `await post(body)` sends the body as JSON and returns the answer's JSON.  The first error stops the others of this call.  Calls that
        are under way together share `concurrency`, first come, first served, and the patience with the server.

        Raises:
            RewardError: The server refused a request, answered with no JSON, or stayed away until patience was over.
        """
        line = self._line()
        if not line.calls or not line.breaker.left:
            line.breaker = Breaker(self.url, self.patience_seconds)
        breaker, failed = line.breaker, False

        async def take_turn(item: T) -> None:
            nonlocal failed
            async with line.turns:
                if failed:  # and those who wait are not yet cancelled
                    return
                try:
                    await work(lambda body: self._post(breaker, body), item)
                except BaseException:
                    failed = True
                    raise

        tasks = [asyncio.create_task(take_turn(item)) for item in items]
        line.calls += 1
        try:
            await asyncio.gather(*tasks)
        finally:
            line.calls -= 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _post(self, breaker: Breaker, body: Any) -> Any:
        content = json.dumps(body, allow_nan=False).encode()
        garbled = 0
        for attempt in itertools.count():
            async with breaker.turn():
                try:
                    answer = self._read(*await self._send(content))
                except _Passing as failure:
                    garbled += isinstance(failure, _Garbled)
                    if garbled == _TRIES:
                        raise RewardError(f"{self.url} answered {failure}, {_TRIES} times; check the url") from failure
                    breaker.failed(str(failure), failure.retry_after)
                else:
                    breaker.succeeded()
                    return answer
            await asyncio.sleep(min(backoff(attempt), breaker.left))

    async def _send(self, content: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body of an answer."""
        httpx = _httpx()
        headers = {"Content-Type": "application/json", **expanded(self.headers)}
        try:
            response = await asyncio.wait_for(self._line().client.post(self.url, content=content, headers=headers), self.timeout)
        except (asyncio.TimeoutError, httpx.TimeoutException) as error:
            raise _Passing(f"no answer within timeout={self.timeout:g} s") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Passing(f"{type(error).__name__}: {error}") from error
        return response.status_code, response.headers, response.content

    def _read(self, status: int, headers: Mapping[str, str], body: bytes) -> Any:
        if status == 429 or status >= 500:
            raise _Passing(f"{status}: {quoted(body)}", _retry_after(headers.get("retry-after")))
        if not 200 <= status < 300:
            fix = f"give {headers['location']!r} as the url" if "location" in headers else _FIXES.get(status, "check what is sent")
            raise RewardError(f"{self.url} refused a request with {status}: {quoted(body)}; {fix}")
        try:
            return json.loads(body)
        except ValueError as error:
            raise _Garbled(f"something that is not JSON ({error}): {quoted(body)}") from error

    def _line(self) -> _Line:
        process = os.getpid()
        if process not in self._lines:
            httpx = _httpx()
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.concurrency, keepalive_expiry=_IDLE)
            client = httpx.AsyncClient(timeout=None, limits=limits)
            self._lines[process] = _Line(client, asyncio.Semaphore(self.concurrency), Breaker(self.url, self.patience_seconds))
            weakref.finalize(self, _close, client, process)
        return self._lines[process]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lines": {}}  # another process opens its own connections


@dataclass
class _Line:
    """What the calls of one process share; a breaker lasts from the first call to the last that is under way with it."""

    client: Any
    turns: asyncio.Semaphore
    breaker: Breaker
    calls: int = 0  # under way


class _Passing(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _Garbled(_Passing):
    """An answer that is no JSON: cut short on its way, or a page at a wrong address."""


def quoted(text: str | bytes, limit: int = 200) -> str:
    """Return the beginning of a text for a message, in quotes."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return repr(text if len(text) <= limit else text[:limit] + "...")


def is_finite(value: Any) -> bool:
    """Return whether a value of parsed JSON is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _retry_after(value: str | None) -> float | None:
    """Read the header Retry-After (RFC 9110, 10.2.3), seconds or a date; None where there is none that makes sense."""
    try:
        seconds = float(value) if value and value.strip().isdigit() else parsedate_to_datetime(value or "").timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, seconds)


def _close(client: Any, process: int) -> None:
    if os.getpid() == process:
        asyncio.run_coroutine_threadsafe(client.aclose(), background_loop())


def _httpx() -> Any:
    with optional_import("http", "reward models on servers need httpx2"):
        import httpx2
    return httpx2
