"""Which models are in the cache, and which other hands than the daemon's have taken away.

It is recorded, so that a daemon that starts knows what it lacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from craftcache.amounts import counted
from craftcache.wire import NotWarm

from .recording import recording

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Mapping
    from pathlib import Path

    from .database import Database
    from .events import Event

__all__ = ["ModelsHere", "lost_words"]

log = logging.getLogger("craftcached")

LOST_KEPT: Final = 4096
"""Lost models that are remembered; of more than that the first are forgotten."""

NAMED: Final = 8
"""Of many lost models, those that the log names."""


class ModelsHere:
    """The models that somebody asked for by name and that are in the cache; hears of Events.

    A model that a look at the cache does not find any more, though no event said that it was
    removed, is lost: somebody deleted its files, or the file system is not mounted. It stays lost
    until it is seen again, comes again, or nobody wants it any more.

    Its state changes on the event loop, in steps without an await, so there is no lock.

    Args:
        root: The cache directory. What was recorded of another one is forgotten.
        lost_kept: Lost models that are remembered.
    """

    def __init__(self, root: Path, lost_kept: int = LOST_KEPT) -> None:
        self._root = root
        self._lost_kept = lost_kept
        self._here: set[str] = set()
        self._lost_at: dict[str, float] = {}
        self._recorded: Mapping[str, float | None] = {}
        self._has_changed = asyncio.Event()

    def hear(self, event: Event) -> None:
        """Take note of an event."""
        kind, source = event["event"], event.get("source", "")
        if kind in ("warmed", "published"):
            is_back = self._lost_at.pop(source, None) is not None
            is_new = kind == "published" and event["by_name"] and source not in self._here
            if is_back or is_new:
                self._here.add(source)
                self._has_changed.set()
        elif kind in ("evicted", "removed"):
            self.forget(source)

    def forget(self, source: str) -> bool:
        """Do not miss a model; returns whether it was lost."""
        was_lost = self._lost_at.pop(source, None) is not None
        if was_lost or source in self._here:
            self._here.discard(source)
            self._has_changed.set()
        return was_lost

    def vanished(self, present: Iterable[str]) -> frozenset[str]:
        """Models that were here before and are not now, though none was removed.

        They were here at the last look, have come since, or were here when the last daemon ended.

        Args:
            present: The models that are there now.
        """
        return frozenset(self._here.difference(present))

    def looked(
        self, present: Iterable[str], *, vanished: Iterable[str] = (), lost: Collection[str] = ()
    ) -> None:
        """Remember a look at what is in the cache.

        A look takes a while: one first asks what has ``vanished``, and then makes sure of each of
        those on the disk. One that is there after all came during the look, or is there for another
        reason than that somebody asked for it by name; it is missed no more, and not lost.

        Args:
            present: The models that the look has found.
            vanished: The models that had vanished, as asked before.
            lost: Of these the ones that are surely not there.
        """
        gone = sorted(self._here.intersection(lost))  # what was removed meanwhile is not
        back = self._lost_at.keys() & set(present)
        # What has come during the look stays, though the look has not seen it.
        here = self._here.difference(vanished, lost).union(present)
        if gone or back or here != self._here:
            self._has_changed.set()
        self._here = here
        for source in back:
            del self._lost_at[source]
        self._lost_at |= dict.fromkeys(gone, time.time())
        while len(self._lost_at) > self._lost_kept:
            del self._lost_at[next(iter(self._lost_at))]
        if gone:
            more = f", and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
            words = lost_words(len(gone), self._root)
            log.warning("%s: %s%s", words, ", ".join(gone[:NAMED]), more)

    def lost_sources(self) -> Collection[str]:
        """The lost models."""
        return self._lost_at.keys()

    def lost(self) -> list[NotWarm]:
        """What people are told of each lost model, newest first."""
        message = f"its files are gone from {self._root}"
        return [
            NotWarm(source, "Lost", message, f"craftcache warm {source}", at)
            for source, at in reversed(self._lost_at.items())
        ]

    @contextlib.asynccontextmanager
    async def kept_in(self, records: Database) -> AsyncIterator[None]:
        """A context that begins with what is recorded, and in which changes are recorded."""
        self._recorded = await records.models_here(self._root)
        self._here = {source for source, lost_at in self._recorded.items() if lost_at is None}
        lost = [(at, source) for source, at in self._recorded.items() if at is not None]
        self._lost_at = {source: at for at, source in sorted(lost)}
        async with recording(self._has_changed, lambda: self.save(records)):
            yield

    async def save(self, records: Database) -> bool:
        """Save what has changed since it was saved last; returns whether all is saved now."""
        now: dict[str, float | None] = {**dict.fromkeys(self._here), **self._lost_at}
        changed = dict(now.items() - self._recorded.items())
        gone = self._recorded.keys() - now.keys()
        is_saved = await records.save_models_here(self._root, changed, gone=gone)
        if is_saved:
            self._recorded = now
        return is_saved


def lost_words(count: int, root: Path) -> str:
    """What people are told of models that other hands than craftcache's removed."""
    return (
        f"{counted(count, 'model')} that craftcache had in {root} and did not remove "
        f"{'is' if count == 1 else 'are'} gone: see whether its file system is mounted, then warm "
        "again what is wanted"
    )
