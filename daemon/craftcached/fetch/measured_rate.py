"""How fast this node has fetched lately, all its downloads together."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .types import Fetched, Fetcher, Priority, RemoteFile

__all__ = ["MeasuredFetcher"]

LEAST_BYTES = 1_000_000
"""Bytes below which there is nothing to say: small files only show how far away an origin is."""

MEMORY_SECONDS = 600.0
"""Time of downloading after which what was measured counts half as much as what comes next."""


class MeasuredFetcher:
    """A Fetcher that measures the downloads of another Fetcher.

    The rate is that of the node: bytes that came whole, over the time in which at least one
    download ran. It changes on the event loop only, so it has no lock.

    Args:
        fetcher: The Fetcher that does the work.
        clock: Returns the time in seconds; only differences count.
    """

    def __init__(self, fetcher: Fetcher, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetcher = fetcher
        self._clock = clock
        self._running = 0
        self._since = 0.0
        self._seconds = 0.0
        self._bytes = 0.0

    @property
    def bytes_per_second(self) -> float | None:
        """The rate; None where too little was fetched since the start."""
        if self._bytes < LEAST_BYTES or self._seconds <= 0:
            return None
        return self._bytes / self._seconds

    async def fetch(
        self, file: RemoteFile, *, priority: Priority, report: Callable[[int, int | None], None]
    ) -> Fetched:
        """See Fetcher.fetch."""
        with self._measuring():
            fetched = await self._fetcher.fetch(file, priority=priority, report=report)
            self._bytes += fetched.bytes_fetched
        return fetched

    def hurry(self, key: str) -> None:
        """See Fetcher.hurry."""
        self._fetcher.hurry(key)

    @contextlib.contextmanager
    def _measuring(self) -> Iterator[None]:
        if not self._running:
            self._since = self._clock()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            now = self._clock()
            self._seconds += now - self._since
            self._since = now
            if self._seconds > MEMORY_SECONDS:
                self._seconds, self._bytes = self._seconds / 2, self._bytes / 2
