"""The daemon's counters: what it has done since its start, as numbers that only grow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .fetch import Fetched, Fetcher, Priority, RemoteFile

__all__ = ["Counts", "CountedFetcher"]


@dataclass(slots=True)
class Counts:
    """The counters, which change on the event loop only, so that there is no lock.

    Attributes:
        hits: Loads whose files were cached.
        misses: Loads whose files were fetched first.
        bytes_served: Bytes of the files handed to loads; all loads share one copy in memory.
        bytes_fetched: Bytes downloaded, of files that were completed.
        bytes_resumed: Bytes that interrupted downloads had left, of files that were completed.
        fetch_failures: Downloads that were given up, by the code of the error.
        refusals: Requests on the worker socket that ended in an error, by its code.
        responses: HTTP responses, by method, path and status.
    """

    hits: int = 0
    misses: int = 0
    bytes_served: int = 0
    bytes_fetched: int = 0
    bytes_resumed: int = 0
    fetch_failures: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    responses: Counter[tuple[str, str, str]] = field(default_factory=Counter)


class CountedFetcher:
    """A Fetcher that counts the downloads of another Fetcher.

    Args:
        fetcher: The Fetcher that does the work.
        counts: The daemon's counters, which are added to.
    """

    def __init__(self, fetcher: Fetcher, counts: Counts) -> None:
        self._fetcher = fetcher
        self._counts = counts

    async def fetch(
        self, file: RemoteFile, *, priority: Priority, report: Callable[[int, int | None], None]
    ) -> Fetched:
        """See Fetcher.fetch."""
        try:
            fetched = await self._fetcher.fetch(file, priority=priority, report=report)
        except CraftcacheError as error:
            self._counts.fetch_failures[error.code] += 1
            raise
        self._counts.bytes_fetched += fetched.bytes_fetched
        self._counts.bytes_resumed += fetched.bytes_reused
        return fetched

    def hurry(self, key: str) -> None:
        """See Fetcher.hurry."""
        self._fetcher.hurry(key)
