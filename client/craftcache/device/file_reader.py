"""Reads spans of a file into page-locked memory, from several threads at once.

What is in the page cache is copied from there by preadv, which took less time than copies from
mapped pages in all that was measured. What is not there is read through it too, and so
stays for other workers; or past it, where the caller says that nobody else will want the file.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from typing import TYPE_CHECKING, Final

from .pieces import PAGE_BYTES

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FileReader"]

_NOT_HERE: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""How file systems say that they cannot be read past the page cache."""


_MAP_FLAGS: Final = mmap.MAP_PRIVATE | 0x4000
"""With MAP_NORESERVE, from Linux's mman.h: the map takes no memory, however long the file is."""


class FileReader:
    """One file, open for reading; a context, and thread-safe.

    Args:
        fd: The file; it stays the caller's.
        size: Size of the file in bytes.
        direct: Whether to read what is not in the page cache past it (O_DIRECT), where the file
            system and the file's permissions allow it.
    """

    def __init__(self, fd: int, size: int, *, direct: bool) -> None:
        self._fd = fd
        self._size = size
        self._direct = _DirectReader(fd, size) if direct and hasattr(os, "O_DIRECT") else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._direct is not None:
            self._direct.close()

    @property
    def direct_bytes(self) -> int:
        """Bytes that were read past the page cache."""
        return 0 if self._direct is None else self._direct.bytes

    def read(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` with the file's bytes from ``offset`` on, or up to its end.

        Args:
            view: Where to; it begins at a page of memory.
            offset: Place in the file, a multiple of PAGE_BYTES.

        Raises:
            EOFError: The file ends before its size.
            OSError: It cannot be read.
        """
        needed = min(len(view), self._size - offset)
        done = 0 if self._direct is None else self._direct.read(view, offset)
        while done < needed:
            count = os.preadv(self._fd, [view[done:]], offset + done)
            if not count:
                raise EOFError(f"the file ends at byte {offset + done}")
            done += count


class _DirectReader:
    """Reads past the page cache, by O_DIRECT, what is not in it."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        # Guards the opening of _own and _map; nothing else is taken inside.
        self._lock = threading.Lock()
        self._own: int | None = None
        self._map: mmap.mmap | None = None
        self._size = size
        self._gave_up = False
        self.bytes = 0

    def close(self) -> None:
        own, self._own, self._gave_up = self._own, None, True
        if own is not None:
            os.close(own)
        if self._map is not None:
            self._map.close()

    def read(self, view: memoryview, offset: int) -> int:
        """Read as far as it can be done; returns how far, 0 if it is better read as ever."""
        fd = self._open()
        if fd is None or self._is_cached(offset, min(len(view), self._size - offset)):
            return 0
        done = 0
        try:
            while done < len(view):
                count = os.preadv(fd, [view[done:]], offset + done)
                self.bytes += count
                done += count
                if not count or count % PAGE_BYTES:  # the end of the file
                    break
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            self._gave_up = True
        return done

    def _open(self) -> int | None:
        """A descriptor of its own: O_DIRECT on the given one would hold for all who share it."""
        with self._lock:
            if self._own is None and not self._gave_up:
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT
                try:
                    self._own = os.open(f"/proc/self/fd/{self._fd}", flags)
                    self._map = mmap.mmap(self._fd, self._size, flags=_MAP_FLAGS)
                except (OSError, ValueError):  # not allowed to this user, no such file system ...
                    self._gave_up = True
            return None if self._gave_up else self._own

    def _is_cached(self, offset: int, nbytes: int) -> bool:
        """Whether all of it is in the page cache; the map is only asked about, never looked into.

        The kernel says yes of files of other users: those are read as ever.
        """
        pages = (ctypes.c_ubyte * -(-nbytes // mmap.PAGESIZE))()
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map, start))  # type: ignore[arg-type]
        if _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), pages):
            return True
        return all(page & 1 for page in pages)


_libc: Final = ctypes.CDLL(None)
