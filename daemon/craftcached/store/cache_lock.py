"""The daemon's lock on its cache directory, and what happens where somebody removes either."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from craftcache.cache.cache_format import check_format, record_format
from craftcache.cache.placing import LEFTOVER_SECONDS
from craftcache.cache.plain_file import read_plain
from craftcache.errors import CraftcacheError, Unavailable
from craftcache.file_maps import remote_file_system
from craftcached.in_use import is_in_use

from .heartbeat import Heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from craftcache.cache.directory import CacheDir

__all__ = ["CacheLock"]

log = logging.getLogger("craftcached")

T = TypeVar("T")


class CacheLock:
    """The lock that one daemon has on a cache directory; it lasts until the lock is closed.

    Args:
        cache: The cache directory.

    Attributes:
        lost: Set once another daemon took over the cache, on a file system that let it.
    """

    def __init__(self, cache: CacheDir) -> None:
        self._cache = cache
        self._descriptor = -1
        self._device = -1
        self._heartbeat = Heartbeat(cache.private / "daemon.heartbeat")
        self.lost = self._heartbeat.lost
        # Guards _descriptor while heal replaces it. Fetches and publications heal on different
        # threads: without the lock, one would take the other's new hold on the cache for that of
        # another daemon. No other lock is taken inside.
        self._healing = threading.Lock()

    async def acquire(self) -> None:
        """Make the directories, take the lock and clear what a killed predecessor left in staging.

        Raises:
            Unavailable: A newer release wrote the cache, or another daemon has the lock.
            OSError: The directories cannot be made or locked.
        """
        await asyncio.to_thread(check_format, self._cache)
        await asyncio.to_thread(self._cache.create)
        predecessor = await asyncio.to_thread(_last_owner, self._cache)
        self._descriptor = _lock(self._cache)
        if remote_file_system(self._descriptor) is not None:
            try:
                await self._heartbeat.start()
            except BaseException:
                os.close(self._descriptor)
                raise
        await asyncio.to_thread(_clear_leftovers, self._cache.staging, predecessor)
        await asyncio.to_thread(record_format, self._cache)
        self._device = (await asyncio.to_thread(self._cache.root.stat)).st_dev

    async def close(self) -> None:
        """Give the lock back."""
        await self._heartbeat.stop()
        os.close(self._descriptor)

    async def heal(self) -> None:
        """Make removed directories of the cache anew, and take the lock again.

        Raises:
            CraftcacheError: They cannot be made, or the file system that held them is not mounted
                any more. A bare one, as that is the daemon's own fault, or Unavailable.
        """
        await self.healed(lambda: None)

    async def healed(self, look: Callable[[], T]) -> T:
        """Call ``look`` in a thread, once the cache is healed; see heal."""

        def heal_and_look() -> T:
            self.heal_now()
            return look()

        return await asyncio.to_thread(heal_and_look)

    def heal_now(self) -> None:
        """See heal; blocks."""
        root = self._cache.root
        with self._healing:
            if not self.is_gone():
                return
            try:
                self._check_healable()
                self._cache.create()
            except OSError as error:
                raise CraftcacheError(
                    f"the cache directory cannot be used: {error}",
                    hint="craftcache doctor says what is wrong on this node",
                ) from error
            if not _is_lock(self._cache, self._descriptor):
                log.warning("%s was emptied under the daemon; its directories are made anew", root)
                lost, self._descriptor = self._descriptor, _lock(self._cache)
                os.close(lost)

    def is_gone(self) -> bool:
        """Whether directories of the cache were removed, or another directory is in its place."""
        return not (_is_lock(self._cache, self._descriptor) and self._cache.is_made())

    def is_obstructed(self) -> bool:
        """Whether something may keep the next fetch from writing to the cache."""
        may_write = (os.access(path, os.W_OK | os.X_OK) for path in self._cache.directories)
        return self.is_gone() or not all(may_write)

    async def check_healable(self) -> None:
        """Check that removed directories can be made anew once something is to be written.

        They are not made before that: an administrator may be about to remove the rest.

        Raises:
            OSError: They cannot be made.
        """
        await asyncio.to_thread(self._check_healable)

    def _check_healable(self) -> None:
        root = self._cache.root
        if root.is_dir() and root.stat().st_dev != self._device:
            raise OSError(errno.ENODEV, "another file system is mounted there now", str(root))
        for directory in (root, *self._cache.directories):
            places = (directory, *directory.parents)
            nearest = next(path for path in places if os.path.lexists(path))
            if not nearest.is_dir():
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
            if not os.access(nearest, os.W_OK | os.X_OK):
                is_read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
                reason = errno.EROFS if is_read_only else errno.EACCES
                raise OSError(reason, os.strerror(reason), str(nearest))


def _clear_leftovers(staging: Path, predecessor: str) -> None:
    """Remove files of killed writers.

    Those of the daemon before are known by its process id, and by that nobody has them open: in a
    container a worker may have the same. What else a worker may be fetching by itself is younger.

    Args:
        staging: The directory.
        predecessor: Process id of the daemon before; empty where there was none.
    """
    too_old = time.time() - LEFTOVER_SECONDS
    for path in staging.glob("*.tmp"):
        with contextlib.suppress(OSError):
            is_predecessors = path.name.partition("-")[0] == predecessor
            is_old = path.lstat().st_mtime < too_old
            if is_old or (is_predecessors and is_in_use(path) is False):
                path.unlink()


def _last_owner(cache: CacheDir) -> str:
    """Process id of the daemon that locked the cache last, whether it lives or not."""
    with contextlib.suppress(OSError):
        return read_plain(_lock_path(cache), 64).decode("ascii", "replace").strip()
    return ""


def _lock_path(cache: CacheDir) -> Path:
    return cache.private / "daemon.lock"


def _is_lock(cache: CacheDir, descriptor: int) -> bool:
    """Whether the lock file at its path is still the file that this daemon has locked."""
    try:
        return os.path.samestat(_lock_path(cache).lstat(), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _lock(cache: CacheDir) -> int:
    """Lock the cache for this daemon until the returned descriptor is closed."""
    path = _lock_path(cache)
    if path.is_symlink():  # not ours: what it leads to would be locked, and written to
        log.warning("%s is a link, and is replaced", path)
        path.unlink()
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(descriptor, 64).decode("ascii", "replace").strip()
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise Unavailable(
            f"another craftcached (pid {owner or 'unknown'}) already serves {cache.root}",
            hint="Stop it first, or give this one another cache_dir",
            retryable=False,
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
