"""Verified files, open for reading, and the facts about them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from craftcache.digests import Digests

    from .manifest import FileRecord

__all__ = ["FileInfo", "OpenFile", "ServedBy"]

ServedBy: TypeAlias = Literal["daemon", "cache", "origin", "local"]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """The facts about one file of a source.

    Attributes:
        filename: Name as the source lists it.
        size: Size in bytes.
        origin: Address that it came from, as shown to people.
        sha256: Digest of all its bytes, in hex; None for a local file, which nothing promises.
        verified_at: Time when its bytes were last hashed, UTC; None for a local file.
    """

    filename: str
    size: int
    origin: str
    sha256: str | None = None
    verified_at: datetime | None = None

    @classmethod
    def of(cls, filename: str, digests: Digests, origin: str) -> FileInfo:
        """The facts about a file that was hashed just now."""
        return cls(filename, digests.size, origin, digests.sha256, datetime.now(timezone.utc))

    @classmethod
    def recorded(cls, record: FileRecord) -> FileInfo:
        """The facts about a file from its record in a manifest."""
        return cls(
            record.filename,
            record.size,
            record.origin,
            record.sha256,
            record.verified_at,
        )


@dataclass(slots=True)
class OpenFile:
    """A file that is open for reading; it owns its descriptors and closes them with itself.

    Attributes:
        info: The facts about the file.
        descriptor: Descriptor of the file; -1 once it is closed.
        index: Descriptor of its index; None if it has none, or if ``index_content`` is set.
        index_content: Bytes of its index, if this process has read and checked it already.
        mapped: Whether it may be mapped: not if its owner may truncate it meanwhile.
        memory_bytes: Size of the block of a GPU's memory that begins with the file's bytes, where
            ``descriptor`` is one of that; None where it is one of a file.
        lease: Descriptor that keeps that block there while any process has it open; None where
            there is no such block.
    """

    info: FileInfo
    descriptor: int
    index: int | None = None
    index_content: bytes | None = None
    mapped: bool = True
    memory_bytes: int | None = None
    lease: int | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Descriptors of the file and, if open, of its index and of its lease."""
        if self.lease is not None:
            return (self.descriptor, *(() if self.index is None else (self.index,)), self.lease)
        return (self.descriptor,) if self.index is None else (self.descriptor, self.index)

    def read_index(self) -> bytes | None:
        """The content of its index; None where it has none."""
        if self.index is None:
            return self.index_content
        return os.pread(self.index, os.fstat(self.index).st_size, 0)

    def close(self) -> None:
        """Close its descriptors; maps and tensors made from them stay valid."""
        descriptors = self.descriptors
        self.descriptor, self.index, self.lease = -1, None, None
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            self.close()
