"""Why models are not warm: the last thing that happened to each that somebody wanted or had here.

A reader of the status need not search the log. What is warm again is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from craftcache.wire import NotWarm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from .database import Database
    from .events import Event

__all__ = ["Absences"]

SAVE_SECONDS: Final = 1.0
"""Time from a change until it is saved; a crash loses what came in it."""

KEPT: Final = 256
"""Sources that are remembered; of more than that the oldest are forgotten."""


class Absences:
    """The last reason for each source that is not warm; an observer of Events.

    Its state changes on the event loop, in steps without an await, so there is no lock.

    Args:
        kept: Sources that are remembered.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._by_source: dict[str, NotWarm] = {}
        self._here: frozenset[str] = frozenset()
        self._has_changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._by_source)

    def hear(self, event: Event) -> None:
        """Take note of an event."""
        kind, source = event["event"], event.get("source", "")
        if kind in ("warmed", "published"):
            if self._by_source.pop(source, None) is not None:
                self._has_changed.set()
        elif (absence := _absence(event)) is not None:
            if kind in ("evicted", "removed"):
                self._here -= {source}
            self._remember(absence)

    def vanished(self, present: frozenset[str]) -> frozenset[str]:
        """Models that were present at the last look and are not now, though none was removed.

        Args:
            present: The models that are there now.
        """
        return self._here - present

    def looked(self, present: frozenset[str], *, lost: Iterable[str], root: Path) -> None:
        """Remember a look at what is in the cache.

        Args:
            present: The models that are there.
            lost: Of those that had vanished, the ones that are surely not there.
            root: The cache directory.
        """
        for source in self._here.intersection(lost) - self._by_source.keys():  # those say more
            message, hint = f"its files are gone from {root}", f"craftcache warm {source}"
            self._remember(NotWarm(source, "Lost", message, hint, time.time()))
        self._here = present

    def _remember(self, absence: NotWarm) -> None:
        self._by_source.pop(absence.source, None)  # the newest stands last
        self._by_source[absence.source] = absence
        self._has_changed.set()
        if len(self._by_source) > self._kept:
            del self._by_source[next(iter(self._by_source))]

    @contextlib.asynccontextmanager
    async def kept_in(self, records: Database) -> AsyncIterator[None]:
        """A context that begins with what is recorded, and in which changes are recorded."""
        self._by_source = {each.source: each for each in await records.absences()}

        async def save() -> None:
            self._has_changed.clear()
            try:
                await records.save_absences(list(self._by_source.values()))
            except asyncio.CancelledError:
                self._has_changed.set()  # it may not be done
                raise

        async def keep() -> None:
            while await self._has_changed.wait():
                await asyncio.sleep(SAVE_SECONDS)
                await save()

        keeping = asyncio.create_task(keep(), name="absences")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
            if self._has_changed.is_set():
                await save()

    def newest(self) -> list[NotWarm]:
        """All that are remembered, newest first."""
        return list(reversed(self._by_source.values()))


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
            code, message = "Evicted", f"it made room ({event['reason']})"
            hint = f"craftcache warm {source}, and craftcache pin {source} to keep it"
        case "removed":
            code, message, hint = "Removed", "it was removed", f"craftcache warm {source}"
        case _:
            return None
    return NotWarm(source, code, message, hint, event["at"])
