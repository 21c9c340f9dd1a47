"""The daemon's counters and histograms: what it has done since its start."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, get_args
from urllib.parse import urlsplit

from craftcache.daemon.administration import Outcome
from craftcache.errors import CraftcacheError
from craftcache.wire import FallbackReason

from .histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from craftcache.wire import ReportedFallback

    from .events import Event
    from .fetch import Fetched, Fetcher, Priority, RemoteFile

__all__ = ["Counts", "CountedFetcher"]

LOAD_SECONDS = (0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1800.0)
"""Bounds for loads: a hit takes less than a millisecond, a download minutes."""

JOB_SECONDS = (0.1, 0.5, 2.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 7200.0)
"""Bounds for warms and for downloads of a file."""

BYTES_PER_SECOND = (1e5, 1e6, 5e6, 2e7, 5e7, 1e8, 2e8, 5e8, 1e9, 2e9, 5e9)
"""Bounds for downloads, from a telephone line to 40 gigabits."""

LAG_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
"""Bounds for the event loop: everything on it waits for so long."""

MAX_ORIGINS = 64
"""Origins that are told apart: users' URLs can name any number of hosts."""

SERVERS = frozenset({"cache", "origin", "nobody"})
"""Who serves a load without the daemon."""

OTHER = "other"


def _histograms(*labels: str, bounds: tuple[float, ...]) -> dict[str, Histogram]:
    return {label: Histogram(bounds) for label in labels}


@dataclass(slots=True)
class Counts:
    """The counters, which change on the event loop only, so that there is no lock.

    Attributes:
        loads: Loads by who served them and how: the daemon from what was at hand (``hit``) or after
            bringing it (``miss``); as workers report it, something else (``fallback``).
        bytes_served: Bytes of the files handed to loads; all loads share one copy in memory.
        bytes_fetched: Bytes downloaded, by the origin's host and by whether they were ``verified``
            or the download ``failed``.
        bytes_resumed: Bytes that interrupted downloads had left, of files that were completed.
        fetch_failures: Downloads that were given up, by the code of the error.
        refusals: Requests on the worker socket that ended in an error, by its code.
        responses: HTTP responses, by method, path and status.
        warms: Warms that ended, by outcome: ``done``, ``failed`` or ``cancelled``.
        evictions: Evicted models, by reason.
        bytes_evicted: Bytes that their eviction freed, by reason.
        quarantined: Published files that were set aside as wrong.
        verified: Verdicts of verifications on request, by outcome.
        fallbacks: Loads without the daemon that workers have told of, by reason.
        load_wait: Seconds from a load's request to its answer, by result.
        fetch_seconds: Seconds of each download.
        fetch_rate: Bytes a second of each download.
        warm_seconds: Seconds of each warm, by outcome.
        loop_lag: Seconds by which the event loop was late.
        scrape_failures: Parts of a scrape that were left out because they failed, by part.
    """

    loads: Counter[tuple[str, str]] = field(
        default_factory=lambda: Counter({("daemon", "hit"): 0, ("daemon", "miss"): 0})
    )
    bytes_served: int = 0
    bytes_fetched: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes_resumed: int = 0
    fetch_failures: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    responses: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    warms: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(("done", "failed", "cancelled"), 0))
    )
    evictions: Counter[str] = field(default_factory=Counter)
    bytes_evicted: Counter[str] = field(default_factory=Counter)
    quarantined: int = 0
    verified: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(get_args(Outcome), 0))
    )
    fallbacks: Counter[str] = field(default_factory=Counter)
    load_wait: dict[str, Histogram] = field(
        default_factory=partial(_histograms, "hit", "miss", bounds=LOAD_SECONDS)
    )
    fetch_seconds: Histogram = field(default_factory=partial(Histogram, JOB_SECONDS))
    fetch_rate: Histogram = field(default_factory=partial(Histogram, BYTES_PER_SECOND))
    warm_seconds: dict[str, Histogram] = field(
        default_factory=partial(_histograms, "done", "failed", "cancelled", bounds=JOB_SECONDS)
    )
    loop_lag: Histogram = field(default_factory=partial(Histogram, LAG_SECONDS))
    scrape_failures: Counter[str] = field(default_factory=Counter)

    def hear(self, event: Event) -> None:
        """Count an event; an observer of Events."""
        match event["event"]:
            case "warmed":
                self._count_warm("done", event)
            case "warm_failed":
                self._count_warm("failed", event)
            case "warm_cancelled":
                self._count_warm("cancelled", event)
            case "evicted":
                self.evictions[event["reason"]] += 1
                self.bytes_evicted[event["reason"]] += event["freed_bytes"]
            case "quarantined":
                self.quarantined += 1
            case "verified":
                self.verified.update({outcome: event[outcome] for outcome in get_args(Outcome)})

    def count_load(self, result: str, seconds: float) -> None:
        """Count a load that the daemon has served."""
        self.loads["daemon", result] += 1
        self.load_wait[result].observe(seconds)

    def _count_warm(self, outcome: str, event: Event) -> None:
        self.warms[outcome] += 1
        self.warm_seconds[outcome].observe(event["seconds"])

    def count_fallbacks(self, reported: Iterable[ReportedFallback]) -> None:
        """Count loads without the daemon; what a worker says makes no labels of its own."""
        for each in reported:
            reason = each.reason if each.reason in get_args(FallbackReason) else OTHER
            served_by = each.served_by if each.served_by in SERVERS else OTHER
            self.fallbacks[reason] += each.count
            self.loads[served_by, "fallback"] += each.count

    def count_bytes(self, url: str, outcome: str, count: int) -> None:
        """Count downloaded bytes under the host of a URL."""
        host = urlsplit(url).hostname or OTHER
        known = {origin for origin, _ in self.bytes_fetched}
        if host not in known and len(known) >= MAX_ORIGINS:
            host = OTHER
        self.bytes_fetched[host, outcome] += count


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
        counts, received = self._counts, _Received(report)
        began = time.monotonic()
        try:
            fetched = await self._fetcher.fetch(file, priority=priority, report=received)
        except BaseException as error:
            if isinstance(error, CraftcacheError):
                counts.fetch_failures[error.code] += 1
            counts.count_bytes(file.url, "failed", received.bytes)
            raise
        counts.count_bytes(file.url, "verified", fetched.bytes_fetched)
        counts.bytes_resumed += fetched.bytes_reused
        seconds = time.monotonic() - began
        counts.fetch_seconds.observe(seconds)
        if fetched.bytes_fetched and seconds > 0:
            counts.fetch_rate.observe(fetched.bytes_fetched / seconds)
        return fetched

    def hurry(self, key: str) -> None:
        """See Fetcher.hurry."""
        self._fetcher.hurry(key)


class _Received:
    """Passes reports of a download on, and knows how many bytes have come since the first one."""

    def __init__(self, report: Callable[[int, int | None], None]) -> None:
        self._report = report
        self._first: int | None = None
        self.bytes = 0

    def __call__(self, done: int, total: int | None) -> None:
        if self._first is None:
            self._first = done
        self.bytes = max(self.bytes, done - self._first)
        self._report(done, total)
