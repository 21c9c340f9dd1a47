"""The limits that all downloads share, on connections, bandwidth and memory, with priorities.

Each grants synchronously, at the moment something becomes free. Connections and bandwidth go to
downloads that a worker waits for before background warming; among equals connections go to the
download that has least, bandwidth and memory to who asked first.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .types import Priority

__all__ = ["Claimant", "Connections", "Bandwidth", "MemoryBudget"]

BURST_SECONDS = 0.1
"""Unused bandwidth that may be used later, in seconds of the limit."""


@dataclass(slots=True, eq=False)
class Claimant:
    """One download as seen by the limits.

    Attributes:
        priority: Priority of the download; may be raised while it runs.
        connections: Connections that it holds now.
        received: Bytes that came over the network for it so far.
    """

    priority: Priority
    connections: int = 0
    received: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    claimant: Claimant
    host: str
    granted: asyncio.Future[None]


class Connections:
    """Requests in flight, limited in all and to each host.

    Args:
        limit: Most requests in all.
        per_host: Most requests to one host.
    """

    def __init__(self, limit: int, per_host: int) -> None:
        self._limit = limit
        self._per_host = per_host
        self._in_use: Counter[str] = Counter()
        self._waiters: list[_Waiter] = []

    @asynccontextmanager
    async def one(self, host: str, claimant: Claimant) -> AsyncIterator[None]:
        """Hold one connection to ``host``, once it is ``claimant``'s turn."""
        waiter = _Waiter(claimant, host, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._grant()
        try:
            await waiter.granted
            yield
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            else:
                self._in_use[host] -= 1
                claimant.connections -= 1
            # Not at once: a download that gives one back often asks for the next in the same step.
            asyncio.get_running_loop().call_soon(self._grant)

    def _grant(self) -> None:
        while self._in_use.total() < self._limit:
            ready = [w for w in self._waiters if self._in_use[w.host] < self._per_host]
            if not ready:
                return
            chosen = min(ready, key=lambda w: (w.claimant.priority, w.claimant.connections))
            self._waiters.remove(chosen)
            self._in_use[chosen.host] += 1
            chosen.claimant.connections += 1
            if not chosen.granted.done():
                chosen.granted.set_result(None)


class Bandwidth:
    """The limit on the bytes a second of all downloads together.

    Bytes are taken after they were read; the taker is held until they are paid for, and so reads
    on no faster than the cap.
    """

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._balance = 0.0
        self._updated = 0.0
        self._order = count()
        self._waiters: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, size: int, claimant: Claimant) -> None:
        """Wait until ``size`` more bytes are within the limit."""
        if self._rate is None:
            return
        paid: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (claimant.priority, next(self._order), size, paid))
        self._pay()
        await paid

    def _pay(self) -> None:
        assert self._rate is not None  # noqa: S101  # take() came this far
        loop = asyncio.get_running_loop()
        earned = (loop.time() - self._updated) * self._rate
        self._balance = min(self._balance + earned, self._rate * BURST_SECONDS)
        self._updated = loop.time()
        while self._waiters and self._balance >= 0:
            _, _, size, paid = heapq.heappop(self._waiters)
            if not paid.done():
                self._balance -= size
                paid.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiters:
            self._timer = loop.call_later(-self._balance / self._rate, self._pay)


@dataclass(slots=True)
class MemoryBudget:
    """Bytes that all downloads together may keep in memory for the hash.

    Attributes:
        limit: Most bytes.
        used: Bytes kept now.
    """

    limit: int
    used: int = field(default=0, init=False)

    def take(self, size: int) -> bool:
        """Take ``size`` bytes if there is room for them."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give bytes back that were taken."""
        self.used -= size
