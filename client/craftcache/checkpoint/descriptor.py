"""Reading a file by its descriptor alone.

A descriptor that came over a socket shares its position with every other process that was sent
the same one, and opening it anew by ``/proc/self/fd`` asks for the file's permission again. So
it is read at positions that the reader keeps itself.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["DescriptorFile", "read_into"]


class DescriptorFile(io.RawIOBase):
    """The file behind a descriptor, as a binary file with a position of its own.

    The descriptor stays the caller's: closing this does not close it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._position = 0

    def readable(self) -> bool:
        """Always: the descriptor is open for reading."""
        return True

    def seekable(self) -> bool:
        """Always: a regular file."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to ``offset``; as io.IOBase.seek."""
        start = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self._position,
            os.SEEK_END: os.fstat(self._fd).st_size if whence == os.SEEK_END else 0,
        }[whence]
        if start + offset < 0:
            raise ValueError("negative position")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer`` as far as one read does; 0 at the end of the file."""
        count = os.preadv(self._fd, [buffer], self._position)
        self._position += count
        return count


def read_into(fd: int, buffer: WriteableBuffer, offset: int) -> None:
    """Fill ``buffer`` with the file's bytes from ``offset`` on.

    Raises:
        EOFError: The file ends before the buffer does.
    """
    view = memoryview(buffer).cast("B")
    while view:
        count = os.preadv(fd, [view], offset)
        if not count:
            raise EOFError(f"the file ends at byte {offset}")
        view = view[count:]
        offset += count
