"""The queue of warms that their callers do not wait for: kept until they are done or given up.

There is no order among them: each is tried at once, in a task of its own. Which of their downloads
gets the next connection is decided in craftcached.fetch.limits.

A failure that time or the node's administrators can mend (an unreachable origin, a full disk, a
bug) is tried again, each time after a longer pause. A failure that only the caller can mend (a
wrong name, no access) ends the warm, and is logged. The queue outlives a restart of the daemon.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.amounts import counted
from craftcache.daemon.administration import QueuedWarm
from craftcache.errors import CraftcacheError, NotFound, StorageFull, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from craftcache.wire import Warm
    from craftcached.database import Database, WarmJob

__all__ = ["WarmQueue", "pause_after"]

log = logging.getLogger("craftcached")

MAX_QUEUED = 1024
"""Warms that may be in the queue at once; more are refused."""

FIRST_PAUSE_SECONDS = 15.0
LAST_PAUSE_SECONDS = 3600.0
"""Bounds of the pause between two tries, which is twice as long each time."""


@dataclass(slots=True)
class _Entry:
    """A queued warm in memory.

    Attributes:
        job: The warm and its number in the database.
        tries: Number of tries that failed.
        failure: Error of the last try; None before the first has failed.
        next_try_at: Time of the next try, in seconds since the epoch; None while one runs.
    """

    job: WarmJob
    tries: int = 0
    failure: CraftcacheError | None = None
    next_try_at: float | None = None

    def queued(self) -> QueuedWarm:
        """The entry as shown to people, without secrets that its source may hold."""
        warm = self.job.warm
        return QueuedWarm(self.job.id, warm.source.shown, warm.options, self.tries, self.failure)


class WarmQueue:
    """All queued warms, each a task of its own; ``resume`` starts them, ``close`` stops them.

    Args:
        records: The database that keeps the queue.
        warm: Carries out one warm.
    """

    def __init__(self, records: Database, warm: Callable[[WarmJob], Awaitable[object]]) -> None:
        self._records = records
        self._warm = warm
        # By number; both change together, in steps without an await.
        self._entries: dict[int, _Entry] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # Guards the order of changes: add and withdraw change the database and then the maps, with
        # awaits in between. Held across the end of a withdrawn warm too, which may hold locks of
        # FileAcquirer but never takes this one. Taken inside the slots of CandidateMaker, as a new
        # generation's dependencies are queued; the database's lock is taken inside.
        self._changing = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def all(self) -> list[QueuedWarm]:
        """Those that are not done yet, oldest first."""
        return [self._entries[number].queued() for number in sorted(self._entries)]

    def waiting(self) -> list[tuple[QueuedWarm, float]]:
        """Those that have failed, each with the time of its next try."""
        return [
            (entry.queued(), entry.next_try_at)
            for entry in self._entries.values()
            if entry.next_try_at is not None
        ]

    async def resume(self) -> None:
        """Start the warms that were queued before the last stop."""
        for job in await self._records.warm_jobs():
            self._start(job)

    async def close(self) -> None:
        """Cancel the running warms; they stay in the database, and the next start resumes them."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def count(self, uid: int) -> int:
        """Number of warms in the queue that a user asked for first."""
        return sum(entry.job.uid == uid for entry in self._entries.values())

    def users(self) -> Counter[int]:
        """Numbers of warms in the queue by the user who asked for them first."""
        return Counter(e.job.uid for e in self._entries.values() if e.job.uid is not None)

    async def add(
        self,
        warms: Sequence[Warm],
        uid: int | None = None,
        check: Callable[[int], None] = lambda _: None,
    ) -> list[QueuedWarm]:
        """Queue warms; durable when this returns. Equal warms are queued once.

        Args:
            warms: The warms.
            uid: User who asks for them; None for the daemon itself.
            check: Called with the number that the user would have in the queue; may refuse.

        Raises:
            Unavailable: The queue is full; none of these was added.
        """
        async with self._changing:
            self._check_room(set(warms))
            if uid is not None:
                known = {entry.job.warm for entry in self._entries.values()}
                if new := set(warms) - known:
                    check(self.count(uid) + len(new))
            jobs = [await self._records.add_warm_job(warm, uid) for warm in warms]
            return [self._start(job).queued() for job in jobs]

    async def withdraw(self, number: int) -> QueuedWarm:
        """Remove a warm from the queue, and cancel it if it is running.

        Raises:
            NotFound: There is none of that number; it may be done.
        """
        async with self._changing:
            entry = self._entries.get(number)
            if entry is None:
                raise NotFound(f"no queued warm {number}", hint="GET /v1/warm lists them")
            task = self._tasks[number]
            task.cancel()
            await asyncio.wait([task])
            await self._records.finish_warm_job(entry.job)
        log.info("the queued warm of %s is withdrawn", entry.job.warm.source.shown)
        return entry.queued()

    def _check_room(self, wanted: set[Warm]) -> None:
        known = {entry.job.warm for entry in self._entries.values()}
        if len(known | wanted) > MAX_QUEUED:
            raise Unavailable(
                f"{counted(len(known), 'warm')} are queued, and no more than {MAX_QUEUED} may be",
                hint="Try again when some are done",
                retry_after=FIRST_PAUSE_SECONDS,
            )

    def _start(self, job: WarmJob) -> _Entry:
        if job.id not in self._entries:
            self._entries[job.id] = entry = _Entry(job)
            self._tasks[job.id] = task = asyncio.create_task(self._keep(entry))
            task.add_done_callback(lambda _: self._end(job.id))
        return self._entries[job.id]

    def _end(self, number: int) -> None:
        del self._entries[number], self._tasks[number]

    async def _keep(self, entry: _Entry) -> None:
        while (failure := await self._try(entry.job)) is not None:
            entry.tries += 1
            entry.failure = failure
            log.warning("queued warm failed: %s", failure)
            pause = pause_after(failure, entry.tries)
            if pause is None:
                break
            entry.next_try_at = time.time() + pause
            await asyncio.sleep(pause)
            entry.next_try_at = None
        await self._records.finish_warm_job(entry.job)

    async def _try(self, job: WarmJob) -> CraftcacheError | None:
        """Try a warm once; returns its error, or None if it is done."""
        try:
            await self._warm(job)
        except CraftcacheError as error:
            return error
        except Exception:
            shown = job.warm.source.shown
            log.exception("queued warm of %s failed", shown)
            return CraftcacheError("the daemon failed at it", source=shown, retryable=True)
        return None


def pause_after(failure: CraftcacheError, tries: int) -> float | None:
    """Seconds until a warm that has failed ``tries`` times is tried again; None for never."""
    # A full disk is not retryable for the one who asks, but administrators may free space.
    if not failure.retryable and not isinstance(failure, StorageFull):
        return None
    doubled = min(tries - 1, 16)  # far beyond the longest pause, and keeps the shift small
    pause = min(FIRST_PAUSE_SECONDS * float(1 << doubled), LAST_PAUSE_SECONDS)
    return max(pause, failure.retry_after or 0.0)
