"""Changes of the cache directory: each in its turn and in a thread, even if its caller goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

from craftcached.threads import Threads

from .local_files import obstacles_named
from .writers_lock import WritersLock

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from .cache_lock import CacheLock

__all__ = ["Changes"]

WRITING_THREADS = 8
"""Threads for publications and other changes of names, which wait for the disk to sync."""

P = ParamSpec("P")
T = TypeVar("T")


class Changes:
    """Makes changes of a cache directory, the only one in this process that does.

    Args:
        root: The cache directory.
        lock: The daemon's lock on it; directories that were removed are made anew first.
        changed: Set after each change, but for those of which nobody need hear.
    """

    def __init__(self, root: Path, lock: CacheLock, changed: asyncio.Event) -> None:
        self._root = root
        self._lock = lock
        self._changed = changed
        self._writers = WritersLock()
        self._threads = Threads(WRITING_THREADS, "publish")

    def close(self) -> None:
        """End the threads; nothing may be running."""
        self._threads.close()

    async def add(self, source: str, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Like make, beside others that add to the cache; see WritersLock.adding."""
        async with self._writers.adding(source):
            return await self._written(write, *args, **kwargs)

    async def make(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``write`` while nothing else is written; a cancelled caller waits for its end.

        Raises:
            StorageFull: There is no disk space for the small files and links that it writes.
        """
        async with self._writers.changing():
            return await self._written(write, *args, **kwargs)

    async def _written(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def heal_and_write() -> T:
            self._lock.heal_now()
            return write(*args, **kwargs)

        try:
            with obstacles_named(self._root):
                return await self._threads.run(heal_and_write)
        finally:
            self._changed.set()

    async def make_quietly(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Like make, for a change of which nobody need hear: nothing is made anew first."""
        async with self._writers.changing():
            return await self._threads.run(write, *args, **kwargs)
