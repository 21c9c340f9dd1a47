"""Why models are not warm: the last thing that happened to each that somebody wanted or had here.

A reader of the status need not search the log. What is warm again is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from craftcache.daemon.events import eviction_words
from craftcache.wire import NotWarm

from .recording import recording

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from .database import Database
    from .events import Event

__all__ = ["Absences"]

KEPT: Final = 512
"""Sources that are remembered, as anybody may ask for any; of more the oldest are forgotten."""


class Absences:
    """The last reason for each source that is not warm; an observer of Events.

    It says why a warm failed or was given up, and that a model was removed or evicted. Which
    models are in the cache, and which are lost without an event, ModelsHere knows.

    Its state changes on the event loop, in steps without an await, so there is no lock.

    Args:
        kept: Sources that are remembered.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        # The newest stands last. What is remembered later has a higher place, in the database too,
        # so that only what has changed is written.
        self._by_source: dict[str, tuple[int, NotWarm]] = {}
        self._next_place = 0
        self._recorded: frozenset[int] = frozenset()
        self._has_changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._by_source)

    def __contains__(self, source: str) -> bool:
        return source in self._by_source

    def hear(self, event: Event) -> None:
        """Take note of an event."""
        if event["event"] in ("warmed", "published"):
            self.forget(event["source"])
        elif (absence := _absence(event)) is not None:
            self._remember(absence)

    def forget(self, source: str) -> bool:
        """Say no more of a source that is not warm; returns whether anything was said of it."""
        if self._by_source.pop(source, None) is None:
            return False
        self._has_changed.set()
        return True

    def looked(self, present: Mapping[str, float]) -> None:
        """Remember a look at what is in the cache.

        A model that was published after the last thing that is known of it was brought by a worker
        without the daemon, or by another daemon, and nothing is said of it any more.

        Args:
            present: The models that are there, with the times of their publication.
        """
        for source, (_, absence) in list(self._by_source.items()):
            if present.get(source, 0.0) > absence.at:
                self.forget(source)

    def _remember(self, absence: NotWarm) -> None:
        self._by_source.pop(absence.source, None)
        self._by_source[absence.source] = (self._next_place, absence)
        self._next_place += 1
        self._has_changed.set()
        if len(self._by_source) > self._kept:
            del self._by_source[next(iter(self._by_source))]

    @contextlib.asynccontextmanager
    async def kept_in(self, records: Database) -> AsyncIterator[None]:
        """A context that begins with what is recorded, and in which changes are recorded."""
        found = await records.absences()
        self._by_source = {each.source: (place, each) for place, each in found}
        self._recorded = frozenset(place for place, _ in found)
        self._next_place = max(self._recorded, default=-1) + 1
        async with recording(self._has_changed, lambda: self.save(records)):
            yield

    async def save(self, records: Database) -> bool:
        """Save what has changed since it was saved last; returns whether all is saved now."""
        now = dict(self._by_source.values())
        come = {place: now[place] for place in now.keys() - self._recorded}
        is_saved = await records.save_absences(come, gone=self._recorded - now.keys())
        if is_saved:
            self._recorded = frozenset(now)
        return is_saved

    def newest(self) -> list[NotWarm]:
        """All that are remembered, newest first."""
        return [absence for _, absence in reversed(self._by_source.values())]


def _absence(event: Event) -> NotWarm | None:
    """What an event says of a source that is not warm then; None where it says nothing of that."""
    source = event.get("source", "")
    match event["event"]:
        case "warm_failed":
            code, message, hint = event["code"], event["message"], event["hint"] or ""
        case "warm_cancelled":
            code, message = "Cancelled", "nobody waited for it any more"
            hint = f"craftcache warm --detach {source}"
        case "evicted" if not event["superseded"]:  # a past revision: nobody lacks it
            code, message = "Evicted", f"it was removed {eviction_words(event['reason'])}"
            hint = f"craftcache warm {source}, and craftcache pin {source} to keep it"
        case "removed":
            code, message, hint = "Removed", "it was removed", f"craftcache warm {source}"
        case _:
            return None
    return NotWarm(source, code, message, hint, event["at"])
