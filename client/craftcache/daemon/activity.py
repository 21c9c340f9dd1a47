"""What the daemon does at this moment, as cheaply as it can be asked: what ``top`` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from craftcache.wire import Coming
from craftcache.wire.record import AtMost, JsonRecord

__all__ = ["Activity"]

MAX_COMING = 4096


@dataclass(frozen=True, slots=True)
class Activity(JsonRecord):
    """What the daemon is at, and its counters since its start.

    Attributes:
        at: The time, in seconds since the epoch.
        started_at: Time of the daemon's start, likewise.
        coming: What is being brought, oldest first.
        queued: Warms that are promised and not done.
        not_warm: Sources of which the last that happened is that they failed to warm, or went;
            some of them may be warm at an earlier revision.
        hits: Loads of what was at hand.
        misses: Loads of what was brought first.
        bytes_served: Bytes of the files that loads were handed.
        bytes_fetched: Bytes downloaded.
        evictions: Models that were evicted.
        refusals: Workers' requests that ended in an error.
        connections: Workers connected.
        processes: Processes that were handed models and still run.
        newest_event: Number of the newest event.
    """

    at: float
    started_at: float
    coming: Annotated[tuple[Coming, ...], AtMost(MAX_COMING)]
    queued: int
    not_warm: int
    hits: int
    misses: int
    bytes_served: int
    bytes_fetched: int
    evictions: int
    refusals: int
    connections: int
    processes: int
    newest_event: int
