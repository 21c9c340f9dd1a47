"""What the daemon sees to by itself, after each change of the store and now and then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from craftcached.store.store import Store

    from .evictor import Evictor
    from .last_use import LastUse
    from .pins import Pins

__all__ = ["Housekeeping"]

log = logging.getLogger("craftcached")

PERIOD_SECONDS = 60.0
"""How often it looks when nothing was published or removed: what was in use may be free now."""


LEFTOVER_SECONDS = 3600.0
"""How long a blob may stand without a manifest: far longer than its publication takes."""


class Housekeeping:
    """Keeps locks, the limit of the cache, its order and the record of uses.

    An async context manager: it works until it is left.

    Args:
        store: Says when it has changed.
        pins: Whose locks follow new revisions.
        evictor: Keeps the limit.
        uses: Are written down.
    """

    def __init__(self, *, store: Store, pins: Pins, evictor: Evictor, uses: LastUse) -> None:
        self._store = store
        self._duties = (pins.apply_locks, evictor.trim, self._sweep, uses.save)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(work) for work in (self._run(), self._recheck())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _recheck(self) -> None:
        """Look again at what was touched while no daemon ran, as a restored cache was."""
        try:
            await self._store.recheck_all()
        except Exception:
            log.exception("what was touched is not looked at again before it is wanted")

    async def _sweep(self) -> None:
        freed = await self._store.sweep(before=time.time() - LEFTOVER_SECONDS)
        if freed:
            log.info("swept blobs that no model has: %d bytes freed", freed)

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
