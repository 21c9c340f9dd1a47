"""What the kernel holds of files in memory, by the system calls that Python has no names for.

Nothing here decides anything, and everything here blocks.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
from mmap import MAP_SHARED, PAGESIZE, PROT_READ
from typing import TYPE_CHECKING, Self

from craftcache.amounts import exact_size_text, size_text
from craftcache.errors import PolicyDenied

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LockedFile", "lower_io_priority", "read_in", "resident_bytes", "resident_share"]

WINDOW = 32 * 1024 * 1024
"""Bytes that the disk is asked for ahead of those that are being read."""

READ_BYTES = 4 * 1024 * 1024
"""Bytes copied by one read: large for the disk, small for the CPU's cache."""

_CACHESTAT = 451
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_SHIFT = 13
_IOPRIO_BEST_EFFORT_LOWEST = 2 << _IOPRIO_CLASS_SHIFT | 7
_IOPRIO_IDLE = 3 << _IOPRIO_CLASS_SHIFT
_MLOCK_ONFAULT = 1
_MAP_FAILED = ctypes.c_void_p(-1).value
_LOW_BIT = bytes(value & 1 for value in range(256))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mlock2.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)


class _CachestatRange(ctypes.Structure):
    _fields_ = [("off", ctypes.c_uint64), ("len", ctypes.c_uint64)]  # ctypes' way


class _Cachestat(ctypes.Structure):
    _fields_ = [  # ctypes' way
        (name, ctypes.c_uint64)
        for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")
    ]


def resident_bytes(descriptor: int) -> int | None:
    """How many bytes of an open file are in memory; None where the kernel does not say.

    The kernel says nothing, or nothing true, of files that this process neither owns nor may
    write to.
    """
    size = os.fstat(descriptor).st_size
    pages = _cachestat(descriptor)
    if pages is None and _is_told_the_truth(descriptor):
        pages = _mincore(descriptor, size)
    return None if pages is None else min(pages * PAGESIZE, size)


def resident_share(descriptor: int, offset: int, length: int) -> float | None:
    """Share of a part of an open file that is in memory; None where the kernel does not say.

    Args:
        descriptor: Descriptor of the file.
        offset: Beginning of the part, in bytes, at the border of a page.
        length: Its bytes; the file may end before.
    """
    length = min(length, os.fstat(descriptor).st_size - offset)
    if length <= 0:
        return None
    pages = _cachestat(descriptor, offset, length)
    if pages is None and _is_told_the_truth(descriptor):
        pages = _mincore(descriptor, length, offset)
    return None if pages is None else pages / -(-length // PAGESIZE)


def lower_io_priority() -> None:
    """Let everybody else's disk requests go before those of this thread, as far as allowed."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        return
    for priority in (_IOPRIO_IDLE, _IOPRIO_BEST_EFFORT_LOWEST):
        if _libc.syscall(number, _IOPRIO_WHO_PROCESS, 0, priority) == 0:
            return


def read_in(descriptor: int, go_on: Callable[[int], bool]) -> None:
    """Read a whole file into memory, in order.

    Args:
        descriptor: Descriptor of the file.
        go_on: Called with the bytes read so far, at least once a window; ends the reading by False.
    """
    size = os.fstat(descriptor).st_size
    buffer = bytearray(READ_BYTES)
    position = 0
    while position < size and go_on(position):
        os.posix_fadvise(descriptor, position, 2 * WINDOW, os.POSIX_FADV_WILLNEED)
        end = position + WINDOW
        while position < min(end, size):
            count = os.preadv(descriptor, [buffer], position)
            if not count:
                return
            position += count


class LockedFile:
    """A file whose pages stay in memory until this is closed, by a shared read-only map.

    Args:
        descriptor: Descriptor of the file; may be closed afterwards.
        go_on: Called with the bytes locked so far, once a window; ends the locking by False.

    Raises:
        PolicyDenied: It is more than this process may lock.
        OSError: The file cannot be mapped or read.
    """

    def __init__(self, descriptor: int, go_on: Callable[[int], bool]) -> None:
        self.size = os.fstat(descriptor).st_size
        self._address = _map(descriptor, self.size)
        try:
            self._lock(go_on)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the kernel reclaim the pages again."""
        address, self._address = self._address, None
        if address is not None:
            _libc.munmap(address, self.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self, go_on: Callable[[int], bool]) -> None:
        if self._address is None:
            return
        # The whole range first and without reading, so that a limit shows before any work.
        if _libc.mlock2(self._address, self.size, _MLOCK_ONFAULT) != 0:
            raise _lock_error(self.size)
        for start in range(0, self.size, WINDOW):
            if not go_on(start):
                return
            length = min(WINDOW, self.size - start)
            if _libc.mlock(self._address + start, length) != 0:
                raise _lock_error(length)


def _cachestat(descriptor: int, offset: int = 0, length: int = 0) -> int | None:
    """Pages in memory; None where the kernel is older than 6.5 or does not permit the question.

    A length of 0 reaches to the end of the file.
    """
    part = _CachestatRange(offset, length)
    found = _Cachestat()
    status = _libc.syscall(
        _CACHESTAT, descriptor, ctypes.byref(part), ctypes.byref(found), ctypes.c_uint(0)
    )
    return found.cache if status == 0 else None


def _is_told_the_truth(descriptor: int) -> bool:
    """Whether mincore answers this process; to others it claims that every page is in memory."""
    if os.fstat(descriptor).st_uid == os.geteuid():
        return True
    return os.access(f"/proc/self/fd/{descriptor}", os.W_OK, effective_ids=True)


def _mincore(descriptor: int, size: int, offset: int = 0) -> int | None:
    address = _map(descriptor, size, offset)
    if address is None:
        return 0
    try:
        states = ctypes.create_string_buffer(-(-size // PAGESIZE))
        if _libc.mincore(address, size, states) != 0:
            return None
        return states.raw.translate(_LOW_BIT).count(1)
    finally:
        _libc.munmap(address, size)


def _map(descriptor: int, size: int, offset: int = 0) -> int | None:
    """The address of a shared read-only map; None of an empty file, which has none."""
    if size == 0:
        return None
    address: int | None = _libc.mmap(None, size, PROT_READ, MAP_SHARED, descriptor, offset)
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address


def _lock_error(size: int) -> Exception:
    number = ctypes.get_errno()
    if number not in (errno.ENOMEM, errno.EPERM, errno.EAGAIN):
        return OSError(number, os.strerror(number))
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return PolicyDenied(
        f"the daemon may not lock {size_text(size)} more in memory "
        f"(RLIMIT_MEMLOCK is {exact_size_text(limit)})",
        hint="Set LimitMEMLOCK=infinity in craftcached.service, or pin without --lock",
    )
