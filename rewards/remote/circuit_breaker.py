"""A circuit breaker: it stops requests to a server that is down, probes the server, and gives up after a time."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from textrl_env.reward_model import RewardError

LIMIT = 5  # failures in a row that open the circuit
FIRST_WAIT, LONGEST_WAIT = 0.2, 10.0  # seconds before a request, or a probe, is tried again

_jitter = random.Random()  # its own: retries must not move the generators that a run is reproduced by
_log = logging.getLogger(__name__)


def backoff(attempt: int) -> float:
    """Return the seconds to wait after failure number `attempt`, from 0: doubled each time, times a factor in [0.5, 1.5)."""
    return min(FIRST_WAIT * 2 ** min(attempt, 16), LONGEST_WAIT) * (0.5 + _jitter.random())


class Breaker:
    """Admits the requests of a call to a server, or of several that are under way together.

    After `LIMIT` failures in a row the circuit is open: nobody calls for a while, then one request at a time probes, at
    growing distances.  The first success closes it.

    Args:
        url: The server's address, for messages.
        patience_seconds: How long may pass without a success, from the start or the last one.
    """

    def __init__(self, url: str, patience_seconds: float) -> None:
        self.url, self.patience_seconds = url, patience_seconds
        self._last_success = time.monotonic()
        self._failures = self._openings = 0
        self._quiet_until = 0.0  # on the monotonic clock
        self._probe = asyncio.Lock()

    @property
    def left(self) -> float:
        """Seconds of patience that are left, at least 0."""
        return max(0.0, self._last_success + self.patience_seconds - time.monotonic())

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a request may be sent; while the circuit is open, one request at a time."""
        await self._quiet()
        if self._failures >= LIMIT:
            async with self._probe:
                await self._quiet()
                if self._failures >= LIMIT:
                    yield
                    return
        yield  # the circuit is closed, or another one's probe has closed it

    def succeeded(self) -> None:
        """Note an answer."""
        self._failures = self._openings = 0
        self._last_success = time.monotonic()

    def failed(self, reason: str, retry_after: float | None = None) -> None:
        """Note a failure that may pass.

        Args:
            reason: What happened, for messages.
            retry_after: Seconds that the server asked to be left alone.

        Raises:
            RewardError: Patience is over, or the server asks for more than is left.
        """
        if not self.left:
            raise RewardError(
                f"{self.url} has given no answer for {self.patience_seconds:g} s; last error: {reason}. "
                "Check that the server runs and is reachable, or raise patience_seconds; what was scored is kept"
            )
        if retry_after is None:
            self._failures += 1
            self._open(reason)
        elif retry_after > self.left:
            raise RewardError(
                f"{self.url} asks to be left alone for {retry_after:g} s ({reason}), with {self.left:.3g} s left of "
                f"patience_seconds={self.patience_seconds:g}: raise it, or lower concurrency"
            )
        else:
            self._quiet_until = max(self._quiet_until, time.monotonic() + retry_after)

    def _open(self, reason: str) -> None:
        if self._failures < LIMIT or time.monotonic() < self._quiet_until:
            return  # requests that were under way when the circuit opened do not lengthen the wait
        if not self._openings:
            _log.warning("%s fails (%s): waiting up to %.0f s for it", self.url, reason, self.left)
        self._quiet_until = time.monotonic() + min(backoff(self._openings), self.left)
        self._openings += 1

    async def _quiet(self) -> None:
        while (wait := self._quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(wait)
