"""What the hub serves: bytes of a known size with their digests, from memory, disk or a formula."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Content", "Data", "OnDisk", "Generated", "FlippedBit", "Prefix", "as_content"]

HASHED_AT_ONCE = 1024 * 1024
"""Bytes."""

GENERATED_BLOCK = 64 * 1024
"""Bytes after which Generated repeats itself but for the block's number."""

_NUMBER_BYTES = 8


class Content(ABC):
    """Bytes that never change; the digests are computed when first asked for, then kept;
    ask off the event loop where that may take long."""

    size: int

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``; the caller stays within ``size``."""

    async def chunk(self, offset: int, length: int) -> bytes:
        """``read`` off the event loop."""
        return await asyncio.to_thread(self.read, offset, length)

    @cached_property
    def sha256(self) -> str:
        """Hex digits."""
        return self._hashed(hashlib.sha256())

    @cached_property
    def git_sha1(self) -> str:
        """The id that git gives a blob of these bytes, in hex digits."""
        return self._hashed(hashlib.sha1(b"blob %d\0" % self.size))

    @property
    def data(self) -> bytes:
        """All of it, for comparing."""
        return self.read(0, self.size)

    def _hashed(self, digest: hashlib._Hash) -> str:
        for chunk in self._chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def _chunks(self) -> Iterator[bytes]:
        for offset in range(0, self.size, HASHED_AT_ONCE):
            yield self.read(offset, min(HASHED_AT_ONCE, self.size - offset))


class Data(Content):
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    async def chunk(self, offset: int, length: int) -> bytes:
        return self.read(offset, length)


class OnDisk(Content):
    """A file that nobody changes while it is served."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)


class Generated(Content):
    """``size`` pseudo-random bytes that need no memory: equal seeds give equal bytes.

    Every block starts with its own number, so that blocks in the wrong order or place show.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.seed = seed
        self._tail = random.Random(seed).randbytes(GENERATED_BLOCK - _NUMBER_BYTES)

    def read(self, offset: int, length: int) -> bytes:
        first = offset // GENERATED_BLOCK
        last = (offset + length - 1) // GENERATED_BLOCK
        blocks = b"".join(
            number.to_bytes(_NUMBER_BYTES, "little") + self._tail
            for number in range(first, last + 1)
        )
        skipped = offset - first * GENERATED_BLOCK
        return blocks[skipped : skipped + length]


class FlippedBit(Content):
    """``content`` with the lowest bit of the byte at ``offset`` turned over."""

    def __init__(self, content: Content, offset: int) -> None:
        self.size = content.size
        self._content = content
        self._offset = offset

    def read(self, offset: int, length: int) -> bytes:
        data = self._content.read(offset, length)
        at = self._offset - offset
        if not 0 <= at < length:
            return data
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class Prefix(Content):
    """The first ``size`` bytes of ``content``."""

    def __init__(self, content: Content, size: int) -> None:
        self.size = min(size, content.size)
        self._content = content

    def read(self, offset: int, length: int) -> bytes:
        return self._content.read(offset, length)


AnyContent: TypeAlias = "Content | bytes | Path"


def as_content(content: AnyContent) -> Content:
    """Content as it is, bytes as Data, a path as OnDisk."""
    if isinstance(content, Content):
        return content
    if isinstance(content, bytes):
        return Data(content)
    return OnDisk(content)
