"""The generation that each watch serves: published when verified, rolled back, waited for."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import TYPE_CHECKING

from craftcache.errors import NotFound
from craftcache.sources import FILENAMES, WatchSource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from craftcache.cache.manifest import Manifest
    from craftcached.database import Database
    from craftcached.events import Events
    from craftcached.store.store import Store

    from .candidate import Candidate, CandidateMaker
    from .watcher import Watcher

__all__ = ["Publisher"]

log = logging.getLogger("craftcached")


class Publisher:
    """Publishes and serves generations, and sends events of it; the listener of all watchers.

    A watch that was rolled back is *held*: it goes on serving the same generation, whichever are
    published, until it is resumed.

    Args:
        store: The store that generations are published in.
        maker: Makes and verifies candidates.
        records: The database, which keeps which watches are held.
        events: The event stream, told of changes of state and of served generations.
    """

    def __init__(
        self, store: Store, maker: CandidateMaker, records: Database, events: Events
    ) -> None:
        self._store = store
        self._maker = maker
        self._records = records
        self._events = events
        self._held: set[str] = set()
        # Held while a watch's served generation changes, with _held and Watcher.is_held: a rollback
        # and a new generation must not overtake each other. Taken before the store's WritersLock
        # and the database; no other lock is taken inside.
        self._moving = asyncio.Lock()
        self._next: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._queue_needs: Callable[[Manifest], Awaitable[object]]

    async def begin(self, queue_needs: Callable[[Manifest], Awaitable[object]]) -> None:
        """Read which watches were held before the last stop.

        Args:
            queue_needs: Called with each new generation; queues a warm of its dependencies, and
                returns at once.
        """
        self._queue_needs = queue_needs
        self._held = await self._records.held_watches()

    async def take_up(self, watcher: Watcher) -> None:
        """Serve the newest generation of a watch that starts: a kill may have prevented that."""
        watcher.is_held = watcher.rule.name in self._held and watcher.generations.served is not None
        await self._serve_newest(watcher)

    def situation_changed(self, watcher: Watcher) -> None:
        """See WatchListener."""
        report = watcher.report()
        log.info(
            "watch %s: %s%s", report.rule.name, report.state, f", {report.detail}".rstrip(", ")
        )
        self._events.tell(
            "watch",
            name=report.rule.name,
            directory=report.rule.directory,
            state=report.state,
            detail=report.detail,
        )

    async def candidate_verified(self, watcher: Watcher, candidate: Candidate) -> None:
        """See WatchListener."""
        rule, generations = watcher.rule, watcher.generations
        if not await self._is_newest(watcher, candidate):
            manifest = await generations.add(rule.directory, candidate.files)
            log.info("watch %s: %s is generation %s", rule.name, rule.directory, manifest.source)
        await self._serve_newest(watcher)
        if generations.newest is not None:
            await self._queue_needs(generations.newest)
        await generations.prune(rule.keep)

    async def roll_back(self, watcher: Watcher, number: int | None) -> None:
        """Serve an earlier generation, by default the one before, and hold it.

        Raises:
            NotFound: There is no such generation.
        """
        name = watcher.rule.name
        async with self._moving:
            if number is None:
                number = _before(watcher)
            manifest = await watcher.generations.serve(number)
            watcher.is_held = True
            self._held.add(name)
            await self._records.hold_watch(name)
        self._served(watcher, manifest)

    async def resume(self, watcher: Watcher) -> None:
        """Serve the newest generation again, and each new one."""
        await self.release(watcher)
        await self._serve_newest(watcher)

    async def release(self, watcher: Watcher) -> None:
        """End the hold of a watch, without serving another generation."""
        async with self._moving:
            watcher.is_held = False
            self._held.discard(watcher.rule.name)
            await self._records.release_watch(watcher.rule.name)

    async def wait_next(self, name: str) -> None:
        """Wait until another generation of a watch is served, or the watch ends."""
        await self._next[name].wait()

    def wake(self, name: str) -> None:
        """Wake all that wait for another generation of that watch."""
        if event := self._next.pop(name, None):
            event.set()

    async def _is_newest(self, watcher: Watcher, candidate: Candidate) -> bool:
        """Whether the newest generation has the candidate's bytes, and they are intact."""
        newest = watcher.generations.newest
        if newest is None or newest.watched is None:
            return False
        source = WatchSource(watcher.rule.name, newest.watched.generation)
        digests = {record.filename: record.sha256 for record in newest.files}
        if digests != candidate.digests:
            return False
        return await self._store.recheck(source, FILENAMES.values()) is not None

    async def _serve_newest(self, watcher: Watcher) -> None:
        """Serve the newest generation, unless it is served already or the watch is held."""
        async with self._moving:
            newest, served = watcher.generations.newest, watcher.generations.served
            if watcher.is_held or newest is None or newest.watched is None:
                return
            if served is not None and served.watched == newest.watched:
                return
            manifest = await watcher.generations.serve(newest.watched.generation)
        self._served(watcher, manifest)

    def _served(self, watcher: Watcher, manifest: Manifest) -> None:
        """Tell, and wake the waiters: another generation is served."""
        name = watcher.rule.name
        number = manifest.watched.generation if manifest.watched else 0
        self._events.tell("generation", name=name, generation=number, revision=manifest.revision)
        self.wake(name)


def _before(watcher: Watcher) -> int:
    """Number of the generation before the served one."""
    served = watcher.generations.served
    number = served.watched.generation if served and served.watched else 0
    earlier = [each for each in watcher.generations.numbers if each < number]
    if not earlier:
        raise NotFound(
            "there is no generation before the one that is served",
            source=f"watch:{watcher.rule.name}",
            hint="craftcache watch ls shows which there are",
        )
    return earlier[-1]
