"""Hashing of published files in the background: in small pieces, paced, and out of the way.

A large file is hashed by a process whose disk requests and computing let everybody else's go first.
What had to be read from the disk does not stay in memory: the page cache belongs to the models that
are in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Final, Protocol

import craftcache
import craftcached
from craftcache.digests import Hasher
from craftcached.residency.hashing_child import (
    NUMBER_BYTES,
    PIECE_BYTES,
    go_last,
    hash_piece,
)
from craftcached.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

__all__ = ["GIVING_WAY_SECONDS", "AtOnce", "FileHasher", "Pace", "Paced"]

SMALL_BYTES = 8 * 1024 * 1024
"""Size up to which a file is hashed here: it takes less than the start of a process."""

GIVING_WAY_SECONDS = 0.5
"""Time between two looks at whether the work that goes first has ended."""

_SHA256_DIGITS = 64

_UNREADABLE = frozenset({errno.EIO, errno.EISDIR})
"""Error numbers that mean that the file is damaged, not that this process lacks a resource."""

_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
"""What the process may see of the daemon's environment."""

_START: Final = (
    "import sys; sys.path[:0] = sys.argv.pop(1), sys.argv.pop(1)\n"
    "from craftcached.residency.hashing_child import main; main()"
)


class Pace(Protocol):
    """Decides how fast a file is hashed.

    Attributes:
        goes_last: Whether everybody else goes first on the processor. The disk is always last.
    """

    goes_last: bool

    async def after(self, count: int) -> None:
        """Wait as long as is right after ``count`` bytes were hashed."""
        ...


class AtOnce:
    """No pause: for somebody who waits."""

    goes_last = False

    async def after(self, count: int) -> None:
        """See Pace."""


class Paced:
    """A rate, and nothing at all while other work goes first.

    Args:
        bytes_per_second: The rate.
        is_busy: Returns whether other work goes first at this moment.
        goes_last: See Pace.
        clock: Returns monotonic time, in seconds.
        sleep: Waits for that many seconds.
    """

    def __init__(
        self,
        bytes_per_second: float,
        is_busy: Callable[[], bool],
        *,
        goes_last: bool = True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.goes_last = goes_last
        self._rate = bytes_per_second
        self._is_busy = is_busy
        self._clock = clock
        self._sleep = sleep
        self._ready_at = clock()

    async def after(self, count: int) -> None:
        """See Pace; the time that the work itself took counts."""
        now = self._clock()
        # What was lost while it could not go on is not made good at a higher rate.
        self._ready_at = max(self._ready_at + count / self._rate, now)
        if self._ready_at > now:
            await self._sleep(self._ready_at - now)
        while self._is_busy():
            await self._sleep(GIVING_WAY_SECONDS)


class FileHasher:
    """Hashes files one after the other; one instance has one thread, for small ones."""

    def __init__(self) -> None:
        self._thread = Threads(1, "scrub")

    def close(self) -> None:
        """End its thread; nothing may be running."""
        self._thread.close()

    async def hash(
        self, path: Path, pace: Pace, report: Callable[[int], None] = lambda _: None
    ) -> str | None:
        """The sha256 of a file, in hex; None where the disk cannot read its bytes, or it has none.

        It is open only while a piece is read: a file that is open counts as in use, and what is
        hashed in the background must not keep a model from making room. Whether it was the same
        file all the time is for the caller to tell, by its stamp.

        Args:
            path: The file.
            pace: Waits between two pieces.
            report: Called with the bytes hashed so far.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: This process lacks what it takes to read it.
        """
        try:
            status = await self._thread.run(path.stat)
            if not stat.S_ISREG(status.st_mode):  # a pipe or a device may have no end
                return None
            hash_file = self._hash_here if status.st_size <= SMALL_BYTES else _hash_apart
            return await hash_file(path, pace, report)
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            return None

    async def _hash_here(self, path: Path, pace: Pace, report: Callable[[int], None]) -> str:
        hasher, buffer, position = Hasher(), bytearray(PIECE_BYTES), 0
        await pace.after(0)
        while count := await self._thread.run(hash_piece, path, position, buffer, hasher):
            position += count
            report(position)
            await pace.after(count)
        return hasher.digests().sha256


async def _hash_apart(path: Path, pace: Pace, report: Callable[[int], None]) -> str:
    """Hash a file by a process of its own; see residency.hashing_child.

    Raises:
        OSError: The file cannot be read; ChildProcessError if the process ended before its time.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", _START, *_roots()),
        *map(str, (path.absolute(), os.getpid())),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        start_new_session=True,  # an interrupt at the terminal is the daemon's
    )
    assert child.stdin is not None  # noqa: S101  # as asked for
    assert child.stdout is not None  # noqa: S101
    position = 0
    try:
        if pace.goes_last:
            go_last(child.pid)
        await pace.after(0)  # others may have begun meanwhile
        while True:
            child.stdin.write(b".")
            answer = await child.stdout.readexactly(NUMBER_BYTES)
            count = int.from_bytes(answer, "little", signed=True)
            if count < 0:
                raise OSError(-count, os.strerror(-count))
            if count == 0:
                return (await child.stdout.readexactly(_SHA256_DIGITS)).decode("ascii")
            position += count
            report(position)
            await pace.after(count)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise ChildProcessError(errno.ECHILD, "the process that hashes it has ended") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await asyncio.shield(child.communicate())


def _roots() -> list[str]:
    """Where the process finds our two packages."""
    return [os.path.dirname(package.__path__[0]) for package in (craftcache, craftcached)]
