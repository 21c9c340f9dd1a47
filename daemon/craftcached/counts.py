"""What the daemon has done since it started, as numbers that only grow."""

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
    """Changed on the event loop only.

    Attributes:
        hits: Loads whose files were at hand.
        misses: Loads whose files had to be brought first.
        bytes_served: Of the files that loads were handed, which share one copy in memory.
        bytes_fetched: That came over the network, of files that came whole.
        bytes_resumed: That an interrupted download had left, of files that came whole.
        fetch_failures: Downloads that were given up, by the code of the error.
        refusals: Requests on the worker socket that ended in an error, by its code.
        responses: Over HTTP, by method, path and status.
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
    """A Fetcher that counts what another brings.

    Args:
        fetcher: Does the work.
        counts: Where it is counted.
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
