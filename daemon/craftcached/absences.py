"""Why models are not warm: the last thing that happened to each that somebody wanted or had here.

A reader of the status need not search the log. What is warm again is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from craftcache.amounts import counted
from craftcache.daemon.events import eviction_words
from craftcache.wire import NotWarm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

    from .database import Database
    from .events import Event

__all__ = ["Absences", "lost_words"]

log = logging.getLogger("craftcached")

SAVE_SECONDS: Final = 1.0
"""Time from a change until it is saved; a crash loses what came in it."""

KEPT: Final = 4096
"""Sources that are remembered; of more than that the oldest are forgotten."""

NAMED: Final = 8
"""Of many lost models, those that the log names."""


class Absences:
    """The last reason for each source that is not warm; an observer of Events.

    Its state changes on the event loop, in steps without an await, so there is no lock.

    Args:
        kept: Sources that are remembered.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._by_source: dict[str, NotWarm] = {}
        # What is here, by what was seen last and has happened since; recorded, so that a daemon
        # that starts knows what it lacks.
        self._here: set[str] = set()
        self._recorded: frozenset[str] = frozenset()
        self._has_changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._by_source)

    def hear(self, event: Event) -> None:
        """Take note of an event."""
        kind, source = event["event"], event.get("source", "")
        if kind in ("warmed", "published"):
            if self._by_source.pop(source, None) is not None:
                self._has_changed.set()
            if kind == "published" and event["by_name"] and source not in self._here:
                self._here.add(source)
                self._has_changed.set()
        elif (absence := _absence(event)) is not None:
            if kind in ("evicted", "removed"):
                self._here.discard(source)
            self._remember(absence)

    def forget(self, source: str) -> bool:
        """Say no more of a source that is not warm; returns whether anything was said of it."""
        if self._by_source.pop(source, None) is None:
            return False
        self._here.discard(source)
        self._has_changed.set()
        return True

    def vanished(self, present: Iterable[str]) -> frozenset[str]:
        """Models that were here before and are not now, though none was removed.

        They were here at the last look, have come since, or were here when the last daemon ended.

        Args:
            present: The models that are there now.
        """
        return frozenset(self._here.difference(present))

    def looked(
        self,
        present: Mapping[str, float],
        *,
        vanished: Iterable[str] = (),
        lost: Iterable[str],
        root: Path,
    ) -> None:
        """Remember a look at what is in the cache.

        Args:
            present: The models that are there, with the times of their publication.
            vanished: The models that had vanished, as asked before the look.
            lost: Of these the ones that are surely not there.
            root: The cache directory.
        """
        gone = sorted(self._here.intersection(lost) - self._by_source.keys())  # those say more
        for source in gone:
            message, hint = f"its files are gone from {root}", f"craftcache warm {source}"
            self._remember(NotWarm(source, "Lost", message, hint, time.time()))
        if gone:
            more = f", and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
            log.warning("%s: %s%s", lost_words(len(gone), root), ", ".join(gone[:NAMED]), more)
        # Whoever published it since: a worker without the daemon, or another daemon.
        refreshed = [
            source
            for source, absence in self._by_source.items()
            if present.get(source, 0.0) > absence.at
        ]
        for source in refreshed:
            del self._by_source[source]
        # What has come during the look stays, though the look has not seen it.
        here = self._here.difference(vanished, lost).union(present)
        if refreshed or here != self._here:
            self._has_changed.set()
        self._here = here

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
        self._recorded = await records.models_here()
        self._here = set(self._recorded)

        async def save() -> None:
            self._has_changed.clear()
            here = frozenset(self._here)
            try:
                await records.save_absences(list(self._by_source.values()))
                await records.save_models_here(here - self._recorded, gone=self._recorded - here)
                self._recorded = here
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


def lost_words(count: int, root: Path) -> str:
    """What people are told of models that other hands than craftcache's removed."""
    return (
        f"{counted(count, 'model')} that craftcache had in {root} and did not remove "
        f"{'is' if count == 1 else 'are'} gone: see whether its file system is mounted, then warm "
        "again what is wanted"
    )


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
