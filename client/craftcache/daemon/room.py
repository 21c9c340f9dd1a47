"""The room of the cache and the budgets of its users, as HTTP shows them to people."""

from __future__ import annotations

from dataclasses import dataclass

from craftcache.wire.record import JsonRecord

__all__ = ["RoomReport", "UserReport"]


@dataclass(frozen=True, slots=True)
class RoomReport(JsonRecord):
    """The room of the cache at one moment; all of it in bytes.

    Attributes:
        max_bytes: What all that craftcache put there may take; 0 is no limit.
        min_free: What no fetch may use of the file system.
        used: What craftcache put there: models, superseded revisions and other files of its own.
        superseded: Of that, revisions that newer ones have replaced; they are the first to go.
        claimed: Room of files that are being fetched, in the size that they will have.
        lacking: Of claimed, what is still to be written; the rest is not free any more.
        others: What other tools put into the same cache directory.
        evicts_others: Whether that is evicted too.
        free: Free on the file system.
        capacity: Size of the file system.
    """

    max_bytes: int
    min_free: int
    used: int
    superseded: int
    claimed: int
    lacking: int
    others: int
    evicts_others: bool
    free: int
    capacity: int


@dataclass(frozen=True, slots=True)
class UserReport(JsonRecord):
    """What one user has of the daemon at one moment.

    Attributes:
        uid: The user.
        requests: Requests that are worked on; hits are not counted.
        requests_last_minute: Requests of the last minute that took work.
        fetched_bytes_today: Bytes fetched for it since midnight, UTC, and promised to running
            fetches.
        queued: Its warms in the queue.
        held: Number of models that it holds.
    """

    uid: int
    requests: int
    requests_last_minute: int
    fetched_bytes_today: int
    queued: int
    held: int
