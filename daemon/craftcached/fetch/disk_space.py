"""Disk space, reserved for each download before its first byte.

What the file system reports as free is not free: running downloads will still need some of it.
A download is admitted only if it fits beside all that they lack, so that one that cannot end
never begins, and a smaller one that can is not held up by it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError, StorageFull
from craftcache.full_disk import FULL, free_bytes, storage_full

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from craftcached.threads import Threads

__all__ = ["DiskSpace", "free_bytes"]


class DiskSpace:
    """The ledger of the bytes that running downloads still have to write.

    Args:
        free: Returns the bytes that the file system has free for this user; may block.
        threads: Threads that ``free`` is called on.
        directory: A directory on that file system, named in errors.
    """

    def __init__(self, free: Callable[[], int], threads: Threads, directory: Path) -> None:
        self._free = free
        self._directory = directory
        self._threads = threads
        self._lacking: dict[object, int] = {}

    async def reserve(self, holder: object, size: int, *, source: str) -> None:
        """Reserve ``size`` bytes for ``holder``, in place of its reservation before.

        Raises:
            StorageFull: They are not there; nothing is promised.
        """
        self._lacking.pop(holder, None)
        free = await self._threads.run(self._free)
        missing = size - (free - sum(self._lacking.values()))
        if size > 0 and missing > 0:
            raise _full(missing, source)
        self._lacking[holder] = size

    async def keep_ahead(self, holder: object, size: int, *, source: str) -> None:
        """Reserve ``size`` bytes anew for ``holder``, once it has written half of them.

        For a body of unknown length, which reserves as it goes: it never writes beyond what it has
        reserved, and reserves seldom.

        Raises:
            StorageFull: They are not there.
        """
        if self._lacking.get(holder, 0) < size // 2:
            await self.reserve(holder, size, source=source)

    def written(self, holder: object, size: int) -> None:
        """Note that ``holder`` has written ``size`` bytes, which the file system counts now."""
        self._lacking[holder] = max(0, self._lacking.get(holder, 0) - size)

    def release(self, holder: object) -> None:
        """End the reservation of ``holder``."""
        self._lacking.pop(holder, None)

    async def error_for(self, error: OSError, holder: object, *, source: str) -> CraftcacheError:
        """The error that the user sees when a write failed."""
        if error.errno in FULL:
            say = partial(
                storage_full,
                self._directory,
                sum(self._lacking.values()),
                source=source,
                error=error,
                free=await self._threads.run(self._free),
                least=max(self._lacking.get(holder, 0), 1),
            )
            return await self._threads.run(say)
        # A bare CraftcacheError is the daemon's own fault: a worker may still fetch for itself.
        return CraftcacheError(
            f"the staging directory fails: {error.strerror}",
            source=source,
            hint="Look at the disk of the cache directory",
        )


def _full(missing: int, source: str) -> StorageFull:
    return StorageFull(
        f"the cache's file system lacks {missing} bytes",
        missing_bytes=missing,
        source=source,
        hint="Evict models, or give the cache more room",
    )
