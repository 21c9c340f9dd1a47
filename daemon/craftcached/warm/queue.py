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

from craftcache.errors import CraftcacheError, NotFound, StorageFull, Unavailable
from craftcache.sources import parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from craftcached.database import Database, WarmJob

__all__ = ["WarmQueue", "QueuedWarm", "pause_after"]

log = logging.getLogger("craftcached")

MAX_PROMISES = 1024
"""That are not kept yet; further ones are refused until some are."""

FIRST_PAUSE_SECONDS = 15.0
LAST_PAUSE_SECONDS = 3600.0
"""Between two tries: twice as long each time, between these bounds."""


@dataclass(slots=True)
class QueuedWarm:
    """A warm that is to be done.

    Attributes:
        job: What it is.
        tries: How often it has failed.
        failure: How it failed last, or None.
    """

    job: WarmJob
    tries: int = 0
    failure: CraftcacheError | None = None


class WarmQueue:
    """All promised warms, each a task of its own; ``resume`` takes them up, ``close`` stops them.

    Args:
        records: Where they outlive the daemon.
        warm: Does one.
    """

    def __init__(self, records: Database, warm: Callable[[WarmJob], Awaitable[object]]) -> None:
        self._records = records
        self._warm = warm
        self._promises: dict[int, QueuedWarm] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._promises)

    def all(self) -> list[QueuedWarm]:
        """Those that are not kept yet, oldest first."""
        return [self._promises[number] for number in sorted(self._promises)]

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

    async def make(
        self,
        sources: Sequence[str],
        filenames: tuple[str, ...],
        *,
        resident: bool = False,
        pair_only: bool = False,
    ) -> list[WarmJob]:
        """Promise a warm of each source; durable when this returns. The same twice is one.

        Raises:
            Unavailable: Too many are not kept yet; none of these was made.
        """
        async with self._changing:
            self._check_room({(source, filenames, resident, pair_only) for source in sources})
            jobs = [
                await self._records.add_warm_job(
                    source, filenames, resident=resident, pair_only=pair_only
                )
                for source in sources
            ]
            for job in jobs:
                self._start(job)
        return jobs

    async def withdraw(self, number: int) -> WarmJob:
        """Forget a promise, and stop what is being done for it.

        Raises:
            NotFound: There is none of that number; it may have been kept.
        """
        async with self._changing:
            promise = self._promises.get(number)
            if promise is None:
                raise NotFound(f"no queued warm {number}", hint="GET /v1/warm lists them")
            task = self._tasks[number]
            task.cancel()
            await asyncio.wait([task])
            await self._records.finish_warm_job(promise.job)
        log.info("the queued warm of %s is withdrawn", parse(promise.job.source).shown)
        return promise.job

    def _check_room(self, wanted: set[tuple[object, ...]]) -> None:
        jobs = [promise.job for promise in self._promises.values()]
        known = {(job.source, job.filenames, job.resident, job.pair_only) for job in jobs}
        if len(known | wanted) > MAX_PROMISES:
            raise Unavailable(
                f"{len(known)} warms are queued, and no more than {MAX_PROMISES} may be",
                hint="Try again when some are done",
                retry_after=FIRST_PAUSE_SECONDS,
            )

    def _start(self, job: WarmJob) -> None:
        if job.id in self._promises:
            return
        self._promises[job.id] = promise = QueuedWarm(job)
        self._tasks[job.id] = task = asyncio.create_task(self._keep(promise))
        task.add_done_callback(lambda _: self._end(job.id))

    def _end(self, number: int) -> None:
        del self._promises[number], self._tasks[number]

    async def _keep(self, promise: QueuedWarm) -> None:
        while (failure := await self._try(promise.job)) is not None:
            promise.tries += 1
            promise.failure = failure
            log.warning("queued warm failed: %s", failure)
            pause = pause_after(failure, promise.tries)
            if pause is None:
                break
            await asyncio.sleep(pause)
        await self._records.finish_warm_job(promise.job)

    async def _try(self, job: WarmJob) -> CraftcacheError | None:
        """Do what was promised; returns how it failed, or None."""
        try:
            await self._warm(job)
        except CraftcacheError as error:
            return error
        except Exception:
            shown = parse(job.source).shown
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
