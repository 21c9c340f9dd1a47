"""Verified indexes as sealed files in memory, which no process can change.

A file in the cache directory can be edited at any moment, after it was checked as well as before.
So an index is read and checked once, and then handed out from a sealed file in memory: every worker
gets the bytes whose digest the manifest holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import OrderedDict
from typing import Final

__all__ = ["Indexes"]

MAX_BYTES: Final = 128 * 1024 * 1024
"""Bytes of all indexes kept in memory; the index of the largest AudioCraft model takes a
thousandth."""

MAX_COUNT: Final = 512
"""Indexes kept open; each takes one descriptor."""

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Indexes:
    """Sealed indexes by their digest; the least recently used are dropped.

    Not thread-safe: it has no lock, and is used on the event loop only.
    """

    def __init__(self) -> None:
        self._sealed: OrderedDict[str, int] = OrderedDict()
        self._bytes = 0
        self._opened = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close all; a worker that was sent one keeps its own descriptor."""
        while self._sealed:
            self._drop_oldest()
        os.close(self._opened)

    def __contains__(self, digest: str | None) -> bool:
        return digest in self._sealed

    def keep(self, digest: str, data: bytes) -> None:
        """Keep a copy of an index that has been checked.

        Args:
            digest: The sha256 of ``data``, in hex.
            data: Bytes of the index.

        Raises:
            OSError: There is no memory, or no descriptor left.
        """
        if digest in self._sealed:
            return
        descriptor = os.memfd_create("index", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with contextlib.closing(os.fdopen(os.dup(descriptor), "wb", buffering=0)) as file:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(descriptor)
            raise
        self._sealed[digest] = descriptor
        self._bytes += len(data)
        while len(self._sealed) > 1 and (self._bytes > MAX_BYTES or len(self._sealed) > MAX_COUNT):
            self._drop_oldest()

    def open(self, digest: str | None) -> int | None:
        """A read-only descriptor of an index for one worker; None if the index is not kept.

        It is opened anew each time, because processes that share an open file share its offset.

        Raises:
            OSError: There is no descriptor left.
        """
        descriptor = self._sealed.get(digest or "")
        if descriptor is None:
            return None
        self._sealed.move_to_end(digest or "")
        return os.open(f"{descriptor}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._opened)

    def _drop_oldest(self) -> None:
        _, descriptor = self._sealed.popitem(last=False)
        self._bytes -= os.fstat(descriptor).st_size
        os.close(descriptor)
