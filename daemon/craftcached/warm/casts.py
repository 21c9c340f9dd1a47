"""Checkpoints in another dtype, made once for all workers of the node that ask for it.

A cast is derived from a verified file, so it has no promise to keep and no manifest names it; it
goes with the file that it was made from. Who cannot have one loads the file as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.cache.durable import staging_name
from craftcache.errors import CraftcacheError, StorageFull
from craftcache.wire import Progress
from craftcached.fetch.disk_space import free_bytes
from craftcached.singleflight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from craftcache.cache.manifest import FileRecord
    from craftcached.inspect import Inspector
    from craftcached.store.store import Store

__all__ = ["Casts"]

log = logging.getLogger("craftcached")

GROWTH = 2
"""Times the size of a checkpoint that a cast of it has."""

ROOM = 1 + GROWTH
"""Times its size that must be free on the disk before it is cast: that is not worth the last of the
room. The cache, too, must have room for both, or the model would be evicted for its own cast."""


class Casts:
    """Makes casts, each once for all who wait for it.

    Args:
        store: Where they are.
        inspector: Makes them, confined.
        max_bytes: What the whole cache may have now; 0 is no limit.
    """

    def __init__(
        self, store: Store, inspector: Inspector, max_bytes: Callable[[], int] = lambda: 0
    ) -> None:
        self._store = store
        self._inspector = inspector
        self._max_bytes = max_bytes
        self._flights: SingleFlight[bool, Progress] = SingleFlight()
        # Checkpoints that hold nothing to cast, or that cannot be cast however often it is tried.
        self._without: set[tuple[str, str]] = set()

    def is_settled(self, record: FileRecord, dtype: str) -> bool:
        """Whether a checkpoint has been cast to ``dtype``, or never will be."""
        if (record.sha256, dtype) in self._without:
            return True
        return self._store.has_cast(record, dtype)

    async def settle(
        self, record: FileRecord, dtype: str, report: Callable[[Progress], None], *, source: str
    ) -> bool:
        """Cast a checkpoint unless it is settled; returns whether it is now.

        Args:
            record: Of a published checkpoint.
            dtype: By its name in the module torch.
            report: Called with progress.
            source: Named in progress and log.
        """

        async def work(tell: Callable[[Progress], None]) -> bool:
            tell(Progress(source, record.filename, 0, record.size, "casting"))
            return await self._cast(record, dtype, source)

        def report_mine(progress: Progress) -> None:
            report(replace(progress, source=source, file=record.filename))

        if (record.sha256, dtype) in self._without or await self._store.take_cast(record, dtype):
            return True
        async with self._flights.join((record.sha256, dtype), work, report_mine) as is_settled:
            return is_settled

    async def _cast(self, record: FileRecord, dtype: str, source: str) -> bool:
        staged = self._store.cache.staging / staging_name()
        try:
            await self._store.heal()
            if not await asyncio.to_thread(self._has_room, record):
                log.warning("%s is not cast to %s: there is no room for both", source, dtype)
                return False
            index = await self._write(record, dtype, staged, source)
            if index:
                await self._store.publish_cast(staged, record, dtype, index)
                await self._store.take_cast(record, dtype)
                log.info("cast %s of %s to %s", record.filename, source, dtype)
            else:
                self._without.add((record.sha256, dtype))
        except (CraftcacheError, OSError) as error:  # the checkpoint itself can be loaded as ever
            log.warning("%s is not cast to %s: %s", source, dtype, error)
            if not _may_pass(error):
                self._without.add((record.sha256, dtype))
            return False
        finally:
            await asyncio.shield(asyncio.to_thread(staged.unlink, missing_ok=True))
        return True

    def _has_room(self, record: FileRecord) -> bool:
        needed = ROOM * record.size
        return needed <= (self._max_bytes() or needed) and needed <= free_bytes(
            self._store.cache.staging
        )

    async def _write(self, record: FileRecord, dtype: str, staged: Path, source: str) -> bytes:
        output = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            path = self._store.cache.path(record)
            return await self._inspector.cast(path, output, dtype, source=source)
        finally:
            os.close(output)


def _may_pass(error: CraftcacheError | OSError) -> bool:
    """Whether it is not the checkpoint's own fault, so that the next load may try again."""
    return isinstance(error, OSError | StorageFull) or error.retryable
