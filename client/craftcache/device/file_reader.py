"""Reads spans of a file into page-locked memory, from several threads at once.

What is in the page cache is copied from there by preadv, which took less time than mapped pages
do in every way that was measured. What is not comes through it too, and stays for other workers
of the node; or, where the caller says that nobody else will want the file, past it.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Final

from .pieces import PAGE_BYTES

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FileReader"]

_IF_CACHED: Final[int] = getattr(os, "RWF_NOWAIT", 0)
"""Flag of a read that takes only what is in the page cache; 0 where there is none."""

_CANNOT_TELL: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""How file systems say that they know no such flag, or no such way of opening."""


class FileReader:
    """One file, open for reading; thread-safe.

    Args:
        fd: The file; it stays the caller's.
        size: Size of the file in bytes.
        direct: Whether to read what is not in the page cache past it (O_DIRECT), where the file
            system and the file's permissions allow it.
    """

    def __init__(self, fd: int, size: int, *, direct: bool) -> None:
        self._fd = fd
        self._size = size
        # Guards the opening of _own; nothing else is taken inside.
        self._lock = threading.Lock()
        self._own: int | None = None
        self._is_direct = direct and bool(_IF_CACHED) and hasattr(os, "O_DIRECT")
        self.direct_bytes = 0
        """Bytes that were read past the page cache."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        own, self._own, self._is_direct = self._own, None, False
        if own is not None:
            os.close(own)

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
        done = 0
        if self._is_direct:
            done = self._read_cached(view, offset)
            if done < needed:
                done = self._read_direct(view, offset, done)
        while done < needed:
            count = os.preadv(self._fd, [view[done:]], offset + done)
            if not count:
                raise EOFError(f"the file ends at byte {offset + done}")
            done += count

    def _read_cached(self, view: memoryview, offset: int) -> int:
        """Read what is in the page cache, as far as it is there without a gap."""
        done = 0
        try:
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset + done, _IF_CACHED)
                if not count:
                    break
                done += count
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in _CANNOT_TELL:
                raise
            self._is_direct = False
        return done

    def _read_direct(self, view: memoryview, offset: int, done: int) -> int:
        """Read on from ``done`` past the page cache; returns how far that led."""
        fd = self._own_descriptor()
        if fd is None:
            return done
        start = done // PAGE_BYTES * PAGE_BYTES
        try:
            while start < len(view):
                count = os.preadv(fd, [view[start:]], offset + start)
                self.direct_bytes += count
                done = max(done, start + count)
                if not count or count % PAGE_BYTES:  # the end of the file
                    break
                start += count
        except OSError as error:
            if error.errno not in _CANNOT_TELL:
                raise
            self._is_direct = False
        return done

    def _own_descriptor(self) -> int | None:
        """A descriptor of its own: flags of the other one are those of all who were sent it."""
        with self._lock:
            if self._own is None and self._is_direct:
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT
                try:
                    self._own = os.open(f"/proc/self/fd/{self._fd}", flags)
                except OSError:  # not allowed to this user, or no such file system
                    self._is_direct = False
            return self._own
