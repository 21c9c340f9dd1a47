"""Warms that were promised to somebody who did not wait: kept until they are done, or cannot be.

What only time or the node's people can mend (an origin that is away, a full disk, a failure that
nobody foresaw) is tried again, each time after a longer pause; what only the one who asked can
mend is given up, and the log says so. A promise outlives a restart of the daemon.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.daemon.administration import QueuedWarm
from craftcache.errors import CraftcacheError, NotFound, StorageFull, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from craftcache.wire import Warm
    from craftcached.database import Database, WarmJob

__all__ = ["WarmQueue", "pause_after"]

log = logging.getLogger("craftcached")

MAX_QUEUED = 1024
"""Warms that are not done yet; further ones are refused until some are."""

FIRST_PAUSE_SECONDS = 15.0
LAST_PAUSE_SECONDS = 3600.0
"""Between two tries: twice as long each time, between these bounds."""


@dataclass(slots=True)
class _Entry:
    """A warm that is to be done.

    Attributes:
        job: What it is.
        tries: How often it has failed.
        failure: How it failed last, or None.
    """

    job: WarmJob
    tries: int = 0
    failure: CraftcacheError | None = None

    def queued(self) -> QueuedWarm:
        """The entry as people see it, without what may be secret in its source."""
        warm = self.job.warm
        return QueuedWarm(self.job.id, warm.source.shown, warm.options, self.tries, self.failure)


class WarmQueue:
    """All promised warms, each a task of its own; ``resume`` takes them up, ``close`` stops them.

    Args:
        records: Where they outlive the daemon.
        warm: Does one.
    """

    def __init__(self, records: Database, warm: Callable[[Warm], Awaitable[object]]) -> None:
        self._records = records
        self._warm = warm
        # By number; both change together, in steps without an await.
        self._entries: dict[int, _Entry] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # Held by who adds or withdraws, so that the database and the maps change in one order.
        self._changing = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def all(self) -> list[QueuedWarm]:
        """Those that are not done yet, oldest first."""
        return [self._entries[number].queued() for number in sorted(self._entries)]

    async def resume(self) -> None:
        """Take up what was promised before the last stop."""
        for job in await self._records.warm_jobs():
            self._start(job)

    async def close(self) -> None:
        """Stop at a point from which the next start goes on."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def add(self, warms: Sequence[Warm]) -> list[QueuedWarm]:
        """Promise warms; durable when this returns. The same twice is one.

        Raises:
            Unavailable: Too many are not done yet; none of these was added.
        """
        async with self._changing:
            self._check_room(set(warms))
            jobs = [await self._records.add_warm_job(warm) for warm in warms]
            return [self._start(job).queued() for job in jobs]

    async def withdraw(self, number: int) -> QueuedWarm:
        """Forget a promise, and stop what is being done for it.

        Raises:
            NotFound: There is none of that number; it may have been kept.
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
                f"{len(known)} warms are queued, and no more than {MAX_QUEUED} may be",
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
        while (failure := await self._try(entry.job.warm)) is not None:
            entry.tries += 1
            entry.failure = failure
            log.warning("queued warm failed: %s", failure)
            pause = pause_after(failure, entry.tries)
            if pause is None:
                break
            await asyncio.sleep(pause)
        await self._records.finish_warm_job(entry.job)

    async def _try(self, warm: Warm) -> CraftcacheError | None:
        """Do what was promised; returns how it failed, or None."""
        try:
            await self._warm(warm)
        except CraftcacheError as error:
            return error
        except Exception:
            shown = warm.source.shown
            log.exception("queued warm of %s failed", shown)
            return CraftcacheError("the daemon failed at it", source=shown, retryable=True)
        return None


def pause_after(failure: CraftcacheError, tries: int) -> float | None:
    """Seconds until a promise is tried again that has failed ``tries`` times; None for never."""
    if not failure.retryable and not isinstance(failure, StorageFull):
        return None
    doubled = min(tries - 1, 16)  # far beyond the longest pause, and no number grows endless
    pause = min(FIRST_PAUSE_SECONDS * float(1 << doubled), LAST_PAUSE_SECONDS)
    return max(pause, failure.retry_after or 0.0)
