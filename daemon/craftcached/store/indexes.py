"""Verified indexes as files that nobody can change any more.

What stands in the cache directory can be edited at any moment, after it was checked as well as
before. So an index is read and checked once, and then handed out from a sealed file in memory:
every worker gets the bytes whose digest the manifest holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import OrderedDict
from typing import Final

__all__ = ["Indexes"]

MAX_BYTES: Final = 128 * 1024 * 1024
"""Kept in memory, of all indexes together; the largest AudioCraft model's takes a thousandth."""

MAX_COUNT: Final = 512
"""Kept open; each takes one descriptor."""

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Indexes:
    """Sealed indexes by their digest; those used last are kept. Not thread-safe."""

    def __init__(self) -> None:
        self._sealed: OrderedDict[str, int] = OrderedDict()
        self._bytes = 0

    def close(self) -> None:
        """Forget all; who was handed one keeps it."""
        while self._sealed:
            self._drop_oldest()

    def __contains__(self, digest: str | None) -> bool:
        return digest in self._sealed

    def keep(self, digest: str, data: bytes) -> None:
        """Take in an index that has been checked.

        Args:
            digest: The sha256 of ``data``.
            data: The content of the index.

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
        """A descriptor of an index for one worker, for reading only; None where it is not here.

        It is opened anew, because whoever shares an open file shares its offset.

        Raises:
            OSError: There is no descriptor left.
        """
        descriptor = self._sealed.get(digest or "")
        if descriptor is None:
            return None
        self._sealed.move_to_end(digest or "")
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)

    def _drop_oldest(self) -> None:
        _, descriptor = self._sealed.popitem(last=False)
        self._bytes -= os.fstat(descriptor).st_size
        os.close(descriptor)
