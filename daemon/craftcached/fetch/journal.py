"""The journal beside a partial file: what it belongs to, and which of its bytes are down.

One line of JSON says what file the bytes belong to; then come lines that are only ever appended::

    {"version": 1, "boot": "...", "key": "...", "size": 12, "etag": null, "digest": "sha256:..."}
    w 0 8
    d 0 8
    h 8 <64 hex>

``w`` spans were written: they outlive the process (kill -9), but count only until the machine
boots again. ``d`` spans were fsynced before the line was: they outlive a power loss as well. ``h``
is the sha256 of so many first bytes. A torn last line is ignored.

Nothing here is trusted: a resumed file is hashed whole, and compared with its digest. Where none is
known, nobody could tell then; so what is resumed is a beginning that still has the sha256 of its
``h`` line, in the file of that key, and no more.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.cache.plain_file import read_plain

from .spans import Span, SpanSet

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from craftcache.digests import Promise

__all__ = [
    "HashedBeginning",
    "Identity",
    "Journal",
    "PartRecord",
    "read_record",
]

VERSION = 1

MAX_JOURNAL_BYTES = 16 * 1024 * 1024
"""Bytes of a journal that are read: those of a file of a terabyte."""

_HASHED = re.compile(r"h ([1-9][0-9]{0,17}) ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Identity:
    """The version of a file that a partial file holds bytes of.

    Attributes:
        size: Size of the whole file in bytes.
        etag: The strong validator that the origin sent with the bytes, or None.
        digest: The promised digest as ``algorithm:hex``, or None.
    """

    size: int
    etag: str | None
    digest: str | None

    @classmethod
    def of(cls, promise: Promise, *, size: int, etag: str | None) -> Identity:
        """The identity of a promised file, as the origin answered for it."""
        digest = promise.digest
        return cls(size, etag, None if digest is None else f"{digest.algorithm}:{digest.hex}")

    def may_continue(self, promise: Promise) -> bool:
        """Whether bytes of this identity may become part of what ``promise`` describes.

        Without a digest, which would reveal a mixture of versions at the end, only a strong
        validator that is the same will do.
        """
        now = Identity.of(promise, size=self.size, etag=self.etag)
        same_size = promise.size in (None, self.size)
        if self.digest is None:
            same_version = self.etag is not None and promise.etag in (None, self.etag)
            return now == self and same_size and same_version
        return now == self and same_size


@dataclass(frozen=True, slots=True)
class HashedBeginning:
    """So many first bytes of a file, and their sha256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PartRecord:
    """The content of a journal.

    Attributes:
        identity: The version of the file that the bytes belong to.
        durable: Ranges that survive a power loss.
        present: Those ranges, and the ones that were written during this boot of the machine.
        beginnings: Where no digest is known, what was hashed, shortest first; it counts as present
            once it is found to have that sha256 still.
    """

    identity: Identity
    durable: tuple[Span, ...]
    present: tuple[Span, ...]
    beginnings: tuple[HashedBeginning, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the file is missing."""
        return self.present == (Span(0, self.identity.size),)


class Journal:
    """The open journal of one partial file; all its methods block, and any thread may call them.

    Args:
        path: Path of the journal; an older one there is replaced.
        fresh: Path that it has until its first lines are on the disk.
        record: The ranges that are present already.
        boot_id: Id of the running boot of the machine.
    """

    def __init__(self, path: Path, fresh: Path, record: PartRecord, boot_id: str) -> None:
        identity = record.identity
        header = {
            "version": VERSION,
            "boot": boot_id,
            "key": path.stem,
            "size": identity.size,
            "etag": identity.etag,
            "digest": identity.digest,
        }
        text = json.dumps(header) + "\n" + _lines("d", record.durable) + _lines("w", record.present)
        text += "".join(map(_hashed_line, record.beginnings))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(fresh, flags, 0o600)
        try:
            os.write(self._descriptor, text.encode())
            os.fsync(self._descriptor)
            fresh.replace(path)
        except BaseException:
            os.close(self._descriptor)
            raise

    def written(self, span: Span) -> None:
        """Record bytes that the kernel has."""
        os.write(self._descriptor, _lines("w", [span]).encode())

    def durable(self, spans: Iterable[Span]) -> None:
        """Record bytes that the disk has; the caller has fsynced them."""
        os.write(self._descriptor, _lines("d", spans).encode())
        os.fdatasync(self._descriptor)

    def hashed(self, beginning: HashedBeginning) -> None:
        """Record the hash of the bytes so far, from the first on."""
        os.write(self._descriptor, _hashed_line(beginning).encode())

    def close(self) -> None:
        """Close the file, which stays where it is."""
        os.close(self._descriptor)


def read_record(path: Path, boot_id: str) -> PartRecord | None:
    """The content of the journal at ``path``; None if it is absent or cannot be parsed."""
    try:
        header, *lines = read_plain(path, MAX_JOURNAL_BYTES).decode("ascii").split("\n")[:-1]
        head = json.loads(header)
        if head["version"] != VERSION:
            return None
        identity = Identity(int(head["size"]), head["etag"], head["digest"])
        kinds = {"d", "w"} if boot_id and head["boot"] == boot_id else {"d"}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if identity.digest is None:
        beginnings = _beginnings(lines, identity.size) if head.get("key") == path.stem else ()
        return PartRecord(identity, (), (), beginnings)
    durable, present = SpanSet(), SpanSet()
    for line in lines:
        kind, span = _parsed(line)
        if kind == "d":
            durable.add(span)
        if kind in kinds and span.stop <= identity.size:
            present.add(span)
    return PartRecord(identity, tuple(durable), tuple(present))


def _lines(kind: str, spans: Iterable[Span]) -> str:
    return "".join(f"{kind} {span.start} {span.stop}\n" for span in spans)


def _hashed_line(beginning: HashedBeginning) -> str:
    return f"h {beginning.size} {beginning.sha256}\n"


def _beginnings(lines: Iterable[str], most: int) -> tuple[HashedBeginning, ...]:
    found = (_HASHED.fullmatch(line) for line in lines)
    sizes = {int(match[1]): match[2] for match in found if match is not None}
    return tuple(HashedBeginning(size, sizes[size]) for size in sorted(sizes) if size <= most)


def _parsed(line: str) -> tuple[str, Span]:
    """A line's kind and span; an empty span for a line that is damaged."""
    kind, *numbers = line.split(" ")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        return "", Span(0, 0)
    return kind, Span(int(numbers[0]), int(numbers[1]))
