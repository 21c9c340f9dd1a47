"""A partial file in staging with its journal; all that blocks about them.

Lifecycle of ``<key>.part``: mode 0600 while bytes arrive, described by ``<key>.journal``; then
*sealed*: verified, fsynced, mode 0444, the journal gone; then *taken*: renamed to
``<key>-<random>.whole``, which is its owner's and which no later fetch of the key touches.
A small file, which is written at once, has such a name from the start.
What nobody took, or whose owner a crash ended, is found again under its key, and hashed again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from craftcache.cache.foreign_writes import ForeignWrites
from craftcache.cache.plain_file import plain
from craftcache.digests import Hasher, Stamp, hash_descriptor

from .journal import HashedBeginning, Identity, Journal, PartRecord, read_record
from .spans import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from craftcache.digests import Digests, Promise

__all__ = [
    "Names",
    "PartialFile",
    "WholeFile",
    "find_record",
    "reclaim",
    "take_over_xet",
    "stale_keys",
]

SEALED_MODE = 0o444
_MAX_VECTORS = 512
"""Chunks handed to one pwritev; the kernel takes 1024."""

_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Names:
    """The paths of the files of one key in staging.

    Attributes:
        part: The partial file.
        journal: The journal, which lists the ranges that are in the partial file.
        fresh_journal: A new journal before it is renamed over an older one.
        xet: The file that the Xet client writes, before it becomes the partial file.
    """

    part: Path
    journal: Path
    fresh_journal: Path
    xet: Path

    @classmethod
    def of(cls, staging: Path, key: str) -> Names:
        """The names for ``key`` under ``staging``."""
        journal = staging / f"{key}.journal"
        fresh_journal = journal.with_suffix(".journal.new")
        return cls(staging / f"{key}.part", journal, fresh_journal, staging / f"{key}.xet")

    def new_whole(self) -> Path:
        """A unique path for the sealed file, once its owner takes it."""
        return self.part.with_name(f"{self.part.stem}-{secrets.token_hex(8)}.whole")

    def remove(self) -> None:
        """Remove all files of the key; the part first, as a journal alone promises nothing."""
        for path in (self.part, self.journal, self.fresh_journal, self.xet):
            try:
                path.unlink(missing_ok=True)
            except (IsADirectoryError, PermissionError):  # a directory is none of ours
                if not path.is_dir():
                    raise
                shutil.rmtree(path)


class PartialFile:
    """A partial file; nothing is touched before ``open``.

    Args:
        names: The paths of its key.
        record: Its version and the ranges that it has already; None for a file that cannot be
            resumed, which gets no journal.
        boot_id: Id of the running boot of the machine.
    """

    def __init__(self, names: Names, record: PartRecord | None, boot_id: str) -> None:
        self._names = names
        self._record = record
        self._boot_id = boot_id
        self._descriptor: int | None = None
        self._journal: Journal | None = None
        self._foreign: ForeignWrites | None = None

    def open(self) -> None:
        """Open the file with the ranges it has, or make a new one if it has none."""
        self._open()
        self._foreign = ForeignWrites(self.descriptor)

    def _open(self) -> None:
        names, record = self._names, self._record
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        if record is not None and record.is_whole:
            # Perhaps it is linked to its final name already: it must not be touched any more.
            self._descriptor = plain(str(names.part), flags | os.O_RDONLY)
            return
        flags |= os.O_RDWR
        if record is None or not record.present:
            names.remove()
            self._descriptor = os.open(names.part, flags | os.O_CREAT | os.O_EXCL, 0o600)
        else:
            self._descriptor = plain(str(names.part), flags)
        if record is not None:
            os.ftruncate(self._descriptor, record.identity.size)
            self._journal = Journal(names.journal, names.fresh_journal, record, self._boot_id)
            _sync_directory(names.part.parent)

    @property
    def descriptor(self) -> int:
        """The open file, for reading as well."""
        if self._descriptor is None:
            raise ValueError(f"{self._names.part} is not open")
        return self._descriptor

    @property
    def path(self) -> Path:
        """The partial file's name."""
        return self._names.part

    @property
    def has_journal(self) -> bool:
        """Whether what is written is journaled, so that a later run can resume it."""
        return self._journal is not None

    def write(self, offset: int, chunks: Sequence[bytes]) -> None:
        """Write ``chunks`` one after the other from ``offset`` (bytes) on; journal the range."""
        size = sum(map(len, chunks))
        with self._foreign.writing() if self._foreign else contextlib.nullcontext():
            self._write(offset, chunks, size)
        if self._journal is not None:
            self._journal.written(Span(offset, offset + size))

    def _write(self, offset: int, chunks: Sequence[bytes], size: int) -> None:
        vectors = chunks if len(chunks) <= _MAX_VECTORS else [b"".join(chunks)]
        done = os.pwritev(self.descriptor, vectors, offset)
        if done < size:  # a signal, or a disk nearly full: the next call says which
            rest = memoryview(b"".join(chunks))[done:]
            while rest:
                count = os.pwrite(self.descriptor, rest, offset + done)
                done, rest = done + count, rest[count:]

    def holds(self, digests: Digests) -> bool:
        """Whether the file still holds the bytes that had these digests when they came.

        It is hashed again only where other hands may have written to it since it was opened.
        """
        if self._foreign is None or not self._foreign.were_seen():
            return True
        return hash_descriptor(self.descriptor).sha256 == digests.sha256

    def hashed(self, size: int, sha256: str) -> None:
        """Journal the sha256 of the file's first ``size`` bytes."""
        if self._journal is not None:
            self._journal.hashed(HashedBeginning(size, sha256))

    def sync(self, spans: Iterable[Span]) -> None:
        """Flush written bytes to the disk, then journal that ``spans`` are durable."""
        os.fdatasync(self.descriptor)
        if self._journal is not None:
            self._journal.durable(spans)

    def seal(self) -> Stamp:
        """Make the file durable and read-only for good; returns its stamp."""
        with self._foreign.writing() if self._foreign else contextlib.nullcontext():
            os.fchmod(self.descriptor, SEALED_MODE)
        os.fsync(self.descriptor)
        self._names.journal.unlink(missing_ok=True)
        return Stamp.of(os.fstat(self.descriptor))

    def close(self) -> None:
        """Close the descriptors; the files stay."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        if self._journal is not None:
            self._journal.close()


class WholeFile:
    """A small file that is written at once, under a name that no later fetch of its key touches.

    Args:
        names: The paths of its key.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self.path = names.new_whole()
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """The file, open for reading as well once it is written."""
        if self._descriptor is None:
            raise ValueError(f"{self.path} is not open")
        return self._descriptor

    def write(self, chunks: Sequence[bytes], promise: Promise) -> tuple[Digests, Stamp]:
        """Write the file and hash it; it is durable and read-only for good if it is as promised."""
        if os.path.lexists(self._names.part):  # what cannot be resumed
            self._names.remove()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o600)
        data = b"".join(chunks)
        hasher = Hasher.for_promise(replace(promise, size=len(data)))
        hasher.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        digests = hasher.digests()
        if promise.is_kept_by(digests):
            os.fchmod(self._descriptor, SEALED_MODE)
            os.fsync(self._descriptor)
        return digests, Stamp.of(os.fstat(self._descriptor))

    def close(self) -> None:
        """Close the descriptor; the file stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Remove the file, which nobody was told of."""
        self.close()
        self.path.unlink(missing_ok=True)


def find_record(names: Names, promise: Promise, boot_id: str) -> PartRecord | None:
    """The record of the promised file's bytes in staging; None if there is nothing to resume."""
    try:
        status = os.lstat(names.part)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    record = read_record(names.journal, boot_id) or _sealed_record(names, status, promise)
    if (
        record is None
        or record.identity.size != status.st_size
        or not record.identity.may_continue(promise)
    ):
        return None
    return record if record.identity.digest is not None else _proven(names.part, record)


def _proven(part: Path, record: PartRecord) -> PartRecord:
    """The record with the longest beginning that still has the sha256 that the journal says."""
    hasher, position, proven = Hasher(), 0, None
    with open(part, "rb", buffering=0, opener=plain) as file:
        for beginning in record.beginnings:
            while rest := beginning.size - position:
                data = file.read(min(rest, _READ_BYTES))
                if not data:
                    break
                hasher.update(data)
                position += len(data)
            if hasher.digests().sha256 == beginning.sha256:
                proven = beginning
    if proven is None:
        return replace(record, beginnings=())
    present = (Span(0, proven.size),)
    return replace(record, durable=present, present=present, beginnings=(proven,))


def take_over_xet(names: Names, size: int) -> bool:
    """Rename the Xet client's file to the part if it has ``size`` bytes; returns whether it has."""
    try:
        if os.lstat(names.xet).st_size != size:
            return False
    except FileNotFoundError:
        return False
    names.xet.replace(names.part)
    return True


def reclaim(staging: Path) -> None:
    """Return sealed files that owners had taken before a crash to their keys; for the start."""
    for whole in staging.glob("*-*.whole"):
        names = Names.of(staging, whole.name.partition("-")[0])
        if names.part.exists():  # a later fetch began it, and resumes it
            whole.unlink()
        else:
            whole.rename(names.part)


def stale_keys(staging: Path, *, before: float) -> set[str]:
    """Keys of partial files that are too old, or that no fetch could resume whatever their age.

    Args:
        staging: Directory of partial files; files with other names are left alone.
        before: Unix time in seconds; a file whose last byte came earlier is too old.
    """
    keys = set()
    for entry in os.scandir(staging):
        key, _, kind = entry.name.partition(".")
        if kind in {"part", "journal", "journal.new", "xet"} and key not in keys:
            names = Names.of(staging, key)
            if _is_stale(names, before):
                keys.add(key)
    return keys


def _is_stale(names: Names, before: float) -> bool:
    try:
        status = os.lstat(names.part)
    except FileNotFoundError:
        return True
    if not stat.S_ISREG(status.st_mode) or status.st_mtime < before:
        return True
    sealed = stat.S_IMODE(status.st_mode) == SEALED_MODE
    return not sealed and not names.journal.is_file()


def _sealed_record(names: Names, status: os.stat_result, promise: Promise) -> PartRecord | None:
    """The record of a sealed part: all of it, if a digest can tell whether it is still right."""
    if stat.S_IMODE(status.st_mode) != SEALED_MODE or names.journal.exists():
        return None
    if promise.digest is None:
        return None
    whole = (Span(0, status.st_size),)
    return PartRecord(Identity.of(promise, size=status.st_size, etag=None), whole, whole)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
