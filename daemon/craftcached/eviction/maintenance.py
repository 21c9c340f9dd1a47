"""Maintenance: work that the daemon does by itself, periodically and after each change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Self

from craftcache.amounts import size_text

if TYPE_CHECKING:
    from craftcached.store.store import Store

    from .evictor import Evictor
    from .holds import Holds
    from .last_use import LastUse
    from .pins import Pins

__all__ = ["Housekeeping"]

log = logging.getLogger("craftcached")

PERIOD_SECONDS = 60.0
"""Period when nothing was published or removed: models in use then may be free now."""


SWEEP_SECONDS = 60.0
"""Time between two sweeps, and from the start to the first: each looks at every file, and what it
looks for is an hour old at least."""

RECHECK_SECONDS = 1.0
"""Time from the start until files are looked at that may have been touched before it, so that the
requests that waited for the daemon go first."""

ORPHANED_SECONDS = 3600.0
"""Age of a blob without a manifest after which it is removed; its publication takes far less."""


class Housekeeping:
    """Applies locks, evicts beyond the limit, sweeps blobs without a model, saves last uses.

    An async context manager: it works until it is left.

    Args:
        store: The store, which says when it has changed.
        pins: The pins, whose memory locks follow new revisions.
        evictor: Evicts models beyond max_bytes.
        uses: The times of last use, which are saved.
        holds: The models that are held for a while; those that are held no longer are forgotten.
    """

    def __init__(
        self, *, store: Store, pins: Pins, evictor: Evictor, uses: LastUse, holds: Holds
    ) -> None:
        self._store = store
        self._duties = (
            pins.apply_locks,
            holds.drop_expired,
            evictor.trim,
            self._sweep,
            uses.save,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._swept_at = time.monotonic()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(work) for work in (self._run(), self._recheck())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _recheck(self) -> None:
        """Hash files again that were touched while no daemon ran, as in a restored cache."""
        await asyncio.sleep(RECHECK_SECONDS)
        try:
            await self._store.recheck_all()
        except Exception:
            log.exception("what was touched is not looked at again before it is wanted")

    async def _sweep(self) -> None:
        if time.monotonic() - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = time.monotonic()
        freed = await self._store.sweep(before=time.time() - ORPHANED_SECONDS)
        if freed:
            log.info("swept blobs that no model has: %s freed", size_text(freed))

    async def _run(self) -> None:
        while True:
            self._store.changed.clear()
            for duty in self._duties:
                try:
                    await duty()
                except Exception:
                    log.exception("%s failed", duty.__qualname__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_SECONDS):
                    await self._store.changed.wait()
