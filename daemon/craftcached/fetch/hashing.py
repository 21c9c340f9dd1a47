"""Hashes a file in order while its bytes arrive in any order.

What arrives early is kept in memory, nearest first, as far as the common budget reaches. What
did not fit, and what an earlier run left behind, is read back from the file when its turn comes.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craftcache.digests import Digests, Hasher
    from craftcached.threads import Threads

    from .limits import MemoryBudget

__all__ = ["OrderedHash"]

STEP_BYTES = 1024 * 1024
"""Bytes hashed, or read back, in one step off the event loop."""


class OrderedHash:
    """The digest of one file in the making.

    Args:
        hasher: The hash, which takes the bytes in order.
        descriptor: The file, open for reading bytes back that were not kept in memory.
        memory: The budget for bytes kept in memory.
        threads: Threads that hash.
        note: Called by these with the number of bytes hashed so far and their sha256, in hex; None
            where nobody wants to know before the end.
    """

    def __init__(
        self,
        hasher: Hasher,
        descriptor: int,
        memory: MemoryBudget,
        threads: Threads,
        note: Callable[[int, str], None] | None = None,
    ) -> None:
        self._note = note
        self._hasher = hasher
        self._descriptor = descriptor
        self._memory = memory
        self._threads = threads
        self._kept: dict[int, Sequence[bytes]] = {}
        self._buffer: memoryview | None = None
        """Buffer for reading back, which most files never need."""
        self._position = 0
        self._written = 0
        """Offset up to which the file has all bytes."""
        self._complete = False
        self._more = asyncio.Event()
        self._moved = asyncio.Event()

    @property
    def position(self) -> int:
        """Number of bytes hashed, from the start of the file."""
        return self._position

    @property
    def lag(self) -> int:
        """Bytes that are in the file without a gap and not hashed yet."""
        return self._written - self._position

    def keep(self, offset: int, block: Sequence[bytes]) -> None:
        """Keep ``block``, which is written at ``offset``, in memory if there is room for it."""
        size = _size(block)
        while not self._memory.take(size):
            farthest = max(self._kept, default=offset)
            if farthest <= offset:
                return
            self._memory.give(_size(self._kept.pop(farthest)))
        self._kept[offset] = block

    def written_to(self, end: int) -> None:
        """Note that the file has all bytes up to ``end``."""
        self._written = max(self._written, end)
        self._more.set()

    def complete(self) -> None:
        """Note that no more bytes will be written."""
        self._complete = True
        self._more.set()

    async def wait_near(self, lag: int) -> None:
        """Wait until at most ``lag`` bytes could be hashed and are not yet."""
        while self.lag > lag:
            await self._moved.wait()

    async def run(self) -> Digests:
        """Hash until the file is complete, and give the digests of all of it."""
        while self.lag or not self._complete:
            if not self.lag:
                self._more.clear()
                await self._more.wait()
                continue
            taken = self._take_kept()
            if taken:
                await self._threads.run(self._hash, taken)
                size = _size(taken)
                self._memory.give(size)
            else:
                size = await self._threads.run(self._hash_from_file, self._readable_end())
            self._position += size
            self._moved.set()
            self._moved = asyncio.Event()
        return self._hasher.digests()

    def close(self) -> None:
        """Give back the memory of bytes that were not hashed."""
        for block in self._kept.values():
            self._memory.give(_size(block))
        self._kept.clear()

    def _take_kept(self) -> list[bytes]:
        """The kept bytes that come next, without a gap."""
        taken: list[bytes] = []
        offset = self._position
        while offset - self._position < STEP_BYTES and (block := self._kept.pop(offset, None)):
            taken.extend(block)
            offset += _size(block)
        return taken

    def _readable_end(self) -> int:
        """Offset up to which the file must be read back, as memory has no bytes before it."""
        return min([self._written, self._position + STEP_BYTES, *self._kept])

    def _hash(self, chunks: Sequence[bytes]) -> None:
        for chunk in chunks:
            self._hasher.update(chunk)
        self._tell(_size(chunks))

    def _tell(self, more: int) -> None:
        if self._note is not None:
            self._note(self._position + more, self._hasher.digests().sha256)

    def _hash_from_file(self, end: int) -> int:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(STEP_BYTES))
        data = self._buffer[: end - self._position]
        size = os.preadv(self._descriptor, [data], self._position)
        if not size:
            raise OSError(errno.EIO, "the file became shorter while it was hashed")
        self._hasher.update(data[:size])
        self._tell(size)
        return size


def _size(chunks: Sequence[bytes]) -> int:
    return sum(map(len, chunks))
