"""What the daemon does at this moment, as cheaply as it can be asked: what ``top`` shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from craftcache.wire import Coming

if TYPE_CHECKING:
    from craftcache.wire.fields import Fields

__all__ = ["Activity"]

MAX_COMING = 4096


@dataclass(frozen=True, slots=True)
class Activity:
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
    coming: tuple[Coming, ...]
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

    def to_fields(self) -> dict[str, Any]:
        """The activity as a JSON object."""
        return asdict(self) | {"coming": [each.to_fields() for each in self.coming]}

    @classmethod
    def parse(cls, fields: Fields) -> Activity:
        """The activity with these keys."""
        counts = (
            "queued",
            "not_warm",
            "hits",
            "misses",
            "bytes_served",
            "bytes_fetched",
            "evictions",
            "refusals",
            "connections",
            "processes",
            "newest_event",
        )
        return cls(
            at=fields.seconds("at"),
            started_at=fields.seconds("started_at"),
            coming=tuple(map(Coming.parse, fields.children("coming", MAX_COMING))),
            **{name: fields.integer(name) for name in counts},
        )
