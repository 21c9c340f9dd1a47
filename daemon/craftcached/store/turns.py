"""Turns of writers in the cache: many that add at once, or one that changes what is there.

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

__all__ = ["Turns"]


class Turns:
    """Gives turns in the order in which they are asked for, so that nobody waits for ever.

    All state changes on the event loop in steps without an await.
    """

    def __init__(self) -> None:
        self._adding = 0
        self._is_changing = False
        self._waiting: deque[tuple[bool, asyncio.Future[None]]] = deque()
        # By source; taken before a turn of those who add, and held until that ends.
        self._sources: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def adding(self, source: str) -> AsyncIterator[None]:
        """A turn beside others that add, but for those of the same source."""
        async with self._sources.setdefault(source, asyncio.Lock()), self._turn(alone=False):
            yield

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """A turn alone."""
        async with self._turn(alone=True):
            yield

    @asynccontextmanager
    async def _turn(self, *, alone: bool) -> AsyncIterator[None]:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((alone, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):
                    self._waiting.remove((alone, turn))
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
            alone, turn = self._waiting[0]
            if not turn.cancelled():
                if self._is_changing or (alone and self._adding):
                    return
                self._is_changing = alone
                self._adding += not alone
                turn.set_result(None)
            self._waiting.popleft()

    def _end(self, *, alone: bool) -> None:
        if alone:
            self._is_changing = False
        else:
            self._adding -= 1
        self._admit()
