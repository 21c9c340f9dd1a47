"""Verified files, open for reading, and what is known of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from craftcache.digests import Digests

    from .manifest import FileRecord

__all__ = ["FileInfo", "OpenFile", "OpenFiles", "ServedBy"]

ServedBy: TypeAlias = Literal["daemon", "cache", "origin", "local"]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What is known of one file of a source.

    Attributes:
        filename: As the source lists it.
        size: In bytes.
        origin: Where it came from, as shown to people.
        sha256: Of all its bytes, in hex; None of a local file, which promises nothing.
        verified_at: When its bytes were last hashed, UTC; None of a local file.
    """

    filename: str
    size: int
    origin: str
    sha256: str | None = None
    verified_at: datetime | None = None

    @classmethod
    def of(cls, filename: str, digests: Digests, origin: str) -> FileInfo:
        """What is known of a file that was hashed just now."""
        return cls(filename, digests.size, origin, digests.sha256, datetime.now(timezone.utc))

    @classmethod
    def recorded(cls, record: FileRecord) -> FileInfo:
        """What a manifest knows of a file."""
        return cls(
            record.filename,
            record.size,
            record.origin,
            record.sha256,
            record.verified_at,
        )


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One file.

    Attributes:
        info: What is known of it.
        descriptor: Open for reading; closed with the OpenFiles that it is part of.
        index: The content of its index, or None where it must be loaded by torch.
        mapped: Whether it may be mapped: not when its owner may truncate it meanwhile.
    """

    info: FileInfo
    descriptor: int
    index: bytes | None = None
    mapped: bool = True


@dataclass(slots=True)
class OpenFiles:
    """Files of one revision of a source; a context manager that closes them.

    Attributes:
        revision: A commit; of a URL or a watch a digest over its files; empty of local files.
        served_by: Who had them.
        files: By the name that they were asked for by.
        fallback_reason: Why the daemon did not serve them; None where it did or was not asked.
    """

    revision: str
    served_by: ServedBy
    files: Mapping[str, OpenFile]
    fallback_reason: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors; what was mapped or loaded from them stays."""
        files, self.files = self.files, {}
        for file in files.values():
            os.close(file.descriptor)
