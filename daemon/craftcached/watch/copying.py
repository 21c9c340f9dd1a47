"""Copies of files that other processes may write to at any moment.

A copy, never a hard link: writers overwrite in place. Where the file system can, the copy shares
blocks with the original until one of them changes (``copy_file_range``). The digest is of the
bytes in the copy. All calls block.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from typing import TYPE_CHECKING

from craftcache.cache.publish import Verified
from craftcache.digests import READ_BYTES, HashedFile, Hasher, Stamp
from craftcache.full_disk import storage_full

from .snapshot import look, stamp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .snapshot import Snapshot, Target

__all__ = ["FilesChanged", "copy_pair", "pair_bytes"]

_NO_RANGE_COPY = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY}
)
"""Errors of ``copy_file_range`` where it does not work between two file systems."""


class FilesChanged(Exception):
    """A file was written to, replaced or removed while it was being copied."""


def copy_pair(
    target: Target,
    marker: str | None,
    seen: Snapshot,
    staging: Path,
    should_stop: Callable[[], bool],
) -> dict[str, Verified]:
    """Copy both files as they were seen into an empty directory, hashed and durable.

    Args:
        target: Directory of the files.
        marker: As in ``look``.
        seen: Snapshot of the files when they were quiet for long enough.
        staging: Directory that is copied to, under the files' own names.
        should_stop: Asked between chunks; true gives up.

    Raises:
        FilesChanged: They are not what was seen, before, during or after the copy.
        StorageFull: There is no room.
        OSError: They cannot be read, or the copy not be written.
    """
    directory = target.open()
    try:
        copied = {}
        for name, expected in seen.pair:
            copied[name] = _copy(directory, name, expected, staging / name, should_stop)
    except FileNotFoundError as error:
        raise FilesChanged from error
    finally:
        os.close(directory)
    if look(target, marker).without_bystanders != seen.without_bystanders:
        raise FilesChanged
    return copied


def pair_bytes(target: Target, seen: Snapshot) -> int:
    """Bytes that a copy of a snapshot's files takes, as far as they are there."""
    try:
        directory = target.open()
    except OSError:
        return 0
    try:
        names = (name for name, _ in seen.pair)
        return sum(os.stat(name, dir_fd=directory, follow_symlinks=False).st_size for name in names)
    except OSError:
        return 0
    finally:
        os.close(directory)


def _copy(
    directory: int, name: str, expected: str, path: Path, should_stop: Callable[[], bool]
) -> Verified:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    source = os.open(name, flags, dir_fd=directory)
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode) or stamp(status) != expected:
            raise FilesChanged
        _check_room(path.parent, status.st_size)
        copied = _copy_bytes(source, path, should_stop)
        if copied.digests.size != status.st_size or stamp(os.fstat(source)) != expected:
            raise FilesChanged
    finally:
        os.close(source)
    return Verified(copied, expected, 0, copied.digests.size)


def _copy_bytes(source: int, path: Path, should_stop: Callable[[], bool]) -> HashedFile:
    copy = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        hasher = Hasher()
        buffer = bytearray(READ_BYTES)
        view = memoryview(buffer)
        step = _copy_range
        offset = 0
        while True:
            if should_stop():
                raise FilesChanged
            try:
                count = step(source, copy, offset, view)
            except OSError as error:
                if step is _copy_through or error.errno not in _NO_RANGE_COPY:
                    raise
                step = _copy_through
                continue
            if not count:
                break
            hasher.update(view[:count])
            offset += count
        os.fsync(copy)
        return HashedFile(path, hasher.digests(), Stamp.of(os.fstat(copy)))
    finally:
        os.close(copy)


def _copy_range(source: int, copy: int, offset: int, view: memoryview) -> int:
    """Have the kernel copy some bytes, and read the copied bytes back."""
    count = os.copy_file_range(source, copy, len(view), offset, offset)
    done = 0
    while done < count:
        done += os.preadv(copy, [view[done:count]], offset + done)
    return count


def _copy_through(source: int, copy: int, offset: int, view: memoryview) -> int:
    count = os.preadv(source, [view], offset)
    done = 0
    while done < count:
        done += os.pwrite(copy, view[done:count], offset + done)
    return count


def _check_room(directory: Path, size: int) -> None:
    if size > shutil.disk_usage(directory).free:
        raise storage_full(directory, size)
