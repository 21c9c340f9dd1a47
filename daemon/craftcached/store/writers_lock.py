"""The lock of writers in the cache: many that add at once, or one that changes what is there.

A publication waits most of its time for the disk to have synced, and disks sync for many at once as
fast as for one. What it adds has names that no other publication has, but for those of its own
source. What removes names, or rewrites manifests of others, must have the cache for itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["WritersLock"]


class WritersLock:
    """A shared lock for those who add, an exclusive one for who changes; first come, first served.

    All state changes on the event loop in steps without an await.
    """

    def __init__(self) -> None:
        self._adding = 0
        self._is_changing = False
        self._waiting: deque[tuple[bool, asyncio.Future[None]]] = deque()
        # By source; taken before the shared lock, and held until that is free.
        self._sources: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def adding(self, source: str) -> AsyncIterator[None]:
        """Held beside others that add, but for those of the same source."""
        async with self._sources.setdefault(source, asyncio.Lock()), self._held(alone=False):
            yield

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Held alone."""
        async with self._held(alone=True):
            yield

    @asynccontextmanager
    async def _held(self, *, alone: bool) -> AsyncIterator[None]:
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((alone, granted))
        self._admit()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                with suppress(ValueError):
                    self._waiting.remove((alone, granted))
                self._admit()  # those who waited behind this one
            else:
                self._end(alone=alone)
            raise
        try:
            yield
        finally:
            self._end(alone=alone)

    def _admit(self) -> None:
        while self._waiting:
            alone, granted = self._waiting[0]
            if not granted.cancelled():
                if self._is_changing or (alone and self._adding):
                    return
                self._is_changing = alone
                self._adding += not alone
                granted.set_result(None)
            self._waiting.popleft()

    def _end(self, *, alone: bool) -> None:
        if alone:
            self._is_changing = False
        else:
            self._adding -= 1
        self._admit()
