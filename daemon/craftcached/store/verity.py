"""fs-verity: the kernel checks each page of a file as it is read, and lets nobody write to it.

ext4, btrfs and f2fs have it, if they were made or tuned for it. Where it is, what is published gets
it before it is hashed again, so that from then on rot is an error when it is read and not a wrong
byte. Nothing depends on it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
from typing import TYPE_CHECKING, Final

from craftcache.cache.durable import staging_name
from craftcache.cache.plain_file import plain
from craftcached.threads import Threads

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.cache.directory import CacheDir

__all__ = ["Verity"]

log = logging.getLogger("craftcached")

_ENABLE: Final = 0x40806685
"""FS_IOC_ENABLE_VERITY of linux/fsverity.h."""

_GET_FLAGS: Final = 0x80086601
"""FS_IOC_GETFLAGS of linux/fs.h."""

_VERITY_FLAG: Final = 0x00100000

_ARGUMENT: Final = struct.pack("<IIIIQIIQ88x", 1, 1, 4096, 0, 0, 0, 0, 0)
"""Version 1, SHA-256, blocks of 4096 bytes, neither salt nor signature."""

_UNSUPPORTED: Final = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


class Verity:
    """Enables fs-verity for files of a cache.

    Its state: the files that need not be looked at again, by inode.

    Args:
        cache: The cache directory.

    Attributes:
        is_supported: Whether the file system of the cache has it; known once it is opened.
    """

    def __init__(self, cache: CacheDir) -> None:
        self.is_supported = False
        self._cache = cache
        self._protected: set[tuple[int, int]] = set()
        self._thread = Threads(1, "verity")

    async def open(self) -> None:
        """Find out whether the file system has it."""
        self.is_supported = await self._thread.run(self._probe)

    def close(self) -> None:
        """End its thread; nothing may be running."""
        self._thread.close()

    async def protect(self, path: Path, sha256: str) -> None:
        """Have the kernel check a published file from now on, if the file system can.

        Args:
            path: The file.
            sha256: Digest that it was published with, in hex.

        Raises:
            FileNotFoundError: There is no such file.
        """
        if not self.is_supported:
            return
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        if key not in self._protected:
            await self._thread.run(self._enable_published, path, sha256)
            self._protected.add(key)

    def _enable_published(self, path: Path, sha256: str) -> None:
        try:
            with self._cache.stamps.keeping(sha256, path):
                _enable(path)
        except FileNotFoundError:
            raise
        except OSError as error:  # another file system, behind a link, or a writer has it open
            log.debug("fs-verity is not enabled for %s: %s", path, error)

    def _probe(self) -> bool:
        probe = self._cache.staging / staging_name()
        try:
            probe.write_bytes(b"verity")
            _enable(probe)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                log.info("whether the file system has fs-verity is not known: %s", error)
            return False
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        return True


def _enable(path: Path) -> None:
    """Enable it for a file that nobody has open for writing; reads all of the file.

    The file's mtime stays what its manifest says, though the kernel moves it: the hash tree is
    written behind the content. From then on nobody can write, so it hides no change.

    Raises:
        OSError: It cannot be enabled.
    """
    descriptor = plain(str(path), os.O_RDONLY)
    try:
        if not _is_enabled(descriptor):
            before = os.fstat(descriptor)
            fcntl.ioctl(descriptor, _ENABLE, _ARGUMENT)
            os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))
    finally:
        os.close(descriptor)


def _is_enabled(descriptor: int) -> bool:
    try:
        flags = fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8))
    except OSError:
        return False
    return bool(int.from_bytes(flags[:4], "little") & _VERITY_FLAG)
