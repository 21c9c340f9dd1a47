"""The room of the cache and the budgets of its users, as HTTP shows them to people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from craftcache.wire.fields import Fields

__all__ = ["RoomReport", "UserReport"]


@dataclass(frozen=True, slots=True)
class RoomReport:
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

    def to_fields(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return asdict(self)

    @classmethod
    def parse(cls, fields: Fields) -> RoomReport:
        """The report with these keys."""
        return cls(
            max_bytes=fields.integer("max_bytes"),
            min_free=fields.integer("min_free"),
            used=fields.integer("used"),
            superseded=fields.integer("superseded"),
            claimed=fields.integer("claimed"),
            lacking=fields.integer("lacking"),
            others=fields.integer("others"),
            evicts_others=fields.flag("evicts_others"),
            free=fields.integer("free"),
            capacity=fields.integer("capacity"),
        )


@dataclass(frozen=True, slots=True)
class UserReport:
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
    requests: int = 0
    requests_last_minute: int = 0
    fetched_bytes_today: int = 0
    queued: int = 0
    held: int = 0

    def to_fields(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return asdict(self)

    @classmethod
    def parse(cls, fields: Fields) -> UserReport:
        """The report with these keys."""
        return cls(
            uid=fields.integer("uid"),
            requests=fields.integer("requests"),
            requests_last_minute=fields.integer("requests_last_minute"),
            fetched_bytes_today=fields.integer("fetched_bytes_today"),
            queued=fields.integer("queued"),
            held=fields.integer("held"),
        )
