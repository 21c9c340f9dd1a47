"""Hashing of published files in the background: in small pieces, paced, and out of the way.

It is done on one thread whose disk requests let everybody else's go first. What it had to read from
the disk does not stay in memory: the page cache belongs to the models that are in use.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from typing import TYPE_CHECKING, Protocol

from craftcache.digests import Hasher
from craftcached.residency.page_cache import lower_io_priority, resident_share
from craftcached.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

__all__ = ["AtOnce", "FileHasher", "Pace", "Paced"]

PIECE_BYTES = 4 * 1024 * 1024
"""Bytes hashed at a time: some thousandths of a second of one core."""

PATIENT_BYTES_PER_SECOND = 2 * 1024 * 1024
"""Rate while other work goes first."""

RESIDENT_SHARE = 0.5
"""Share of a piece's pages above which it counts as in memory: less may be what the kernel has just
read ahead."""

_UNREADABLE = frozenset({errno.EIO, errno.EISDIR})
"""Error numbers that mean that the file is damaged, not that this process lacks a resource."""


class Pace(Protocol):
    """Decides how fast a file is hashed."""

    async def after(self, count: int) -> None:
        """Wait as long as is right after ``count`` bytes were hashed."""
        ...


class AtOnce:
    """No pause: for somebody who waits."""

    async def after(self, count: int) -> None:
        """See Pace."""


class Paced:
    """A rate, and a lower one while other work goes first.

    Args:
        bytes_per_second: The rate.
        is_busy: Returns whether other work goes first at this moment.
        clock: Returns monotonic time, in seconds.
        sleep: Waits for that many seconds.
    """

    def __init__(
        self,
        bytes_per_second: float,
        is_busy: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._rate = bytes_per_second
        self._is_busy = is_busy
        self._clock = clock
        self._sleep = sleep
        self._ready_at = clock()

    async def after(self, count: int) -> None:
        """See Pace; the time that the work itself took counts."""
        rate = min(self._rate, PATIENT_BYTES_PER_SECOND) if self._is_busy() else self._rate
        now = self._clock()
        # What was lost while it could not go on is not made good at a higher rate.
        self._ready_at = max(self._ready_at + count / rate, now)
        if self._ready_at > now:
            await self._sleep(self._ready_at - now)


class FileHasher:
    """Hashes files one piece after the other; one instance has one thread."""

    def __init__(self) -> None:
        self._thread = Threads(1, "scrub")

    def close(self) -> None:
        """End its thread; nothing may be running."""
        self._thread.close()

    async def hash(
        self, path: Path, pace: Pace, report: Callable[[int], None] = lambda _: None
    ) -> str | None:
        """The sha256 of a file, in hex; None where the disk cannot read its bytes.

        Args:
            path: The file.
            pace: Waits between two pieces.
            report: Called with the bytes hashed so far.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: This process lacks what it takes to read it.
        """
        run, hasher, position = self._thread.run, Hasher(), 0
        await run(lower_io_priority)
        try:
            descriptor = await run(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                buffer = bytearray(PIECE_BYTES)
                while count := await run(_take, descriptor, position, buffer, hasher):
                    position += count
                    report(position)
                    await pace.after(count)
            finally:
                await run(os.close, descriptor)
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            return None
        return hasher.digests().sha256


def _take(descriptor: int, position: int, buffer: bytearray, hasher: Hasher) -> int:
    """Hash the next piece; returns its bytes."""
    share = resident_share(descriptor, position, len(buffer))
    count = os.preadv(descriptor, [buffer], position)
    hasher.update(memoryview(buffer)[:count])
    if count and share is not None and share < RESIDENT_SHARE:
        os.posix_fadvise(descriptor, position, count, os.POSIX_FADV_DONTNEED)
    return count
