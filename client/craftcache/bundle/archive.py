"""A bundle: a lock and the blobs that it names, in one tar file.

    models.lock            first: the lock file, see lockfile
    blobs/<sha256>         each content once, in the order of the lock

Reading trusts nothing: members of other names or kinds (links, devices, directories, sparse files)
are refused before a byte of them is written, each blob is written under a name of our own in the
staging directory, and is kept only if its size and digests are the lock's. What is read into memory
is bounded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol

from craftcache.amounts import counted
from craftcache.cache.durable import staging_name
from craftcache.digests import HashedFile, Hasher, Stamp
from craftcache.errors import IntegrityError, NotFound
from craftcache.full_disk import FULL, free_bytes, storage_full

from .lockfile import MAX_LOCK_BYTES, LockFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import FileRecord
    from craftcache.locked import LockEntry

    from .closure import Closure

__all__ = ["Readable", "Unpacked", "unpack", "write_bundle"]

LOCK_NAME = "models.lock"
BLOBS = "blobs/"

READ_BYTES = 256 * 1024
"""Bytes read at once: few enough for the processor's cache, as each is copied twice by tarfile."""

HEADER_BYTES = 4096
"""Bytes beside its content that a member of a bundle may have: one header, and padding."""

END_BYTES = 2 * 1024 * 1024
"""Bytes that may follow the last member, and that are read ahead."""


GIT_DIGITS = 40
"""Digits of a git blob sha1, which the Hub gives as the etag of a small file."""


class Readable(Protocol):
    """Bytes that come in order, like those of a file or of a request's body."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none only at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A bundle that was read: its lock, and its files in staging, all of them verified.

    Attributes:
        lock: The lock.
        files: The files, by sha256.
    """

    lock: LockFile
    files: dict[str, HashedFile]


def write_bundle(path: Path, closure: Closure, cache: CacheDir) -> int:
    """Write models of a cache, and all that they need, to a new bundle; returns its bytes.

    Every byte is hashed on the way. What was at ``path`` is replaced once the bundle is whole.

    Raises:
        IntegrityError: A file of the cache is not what was verified.
        NotFound: A file of the cache was removed since, say because it was found damaged.
        OSError: A file cannot be read, or the bundle not be written.
    """
    part = path.parent / f".{path.name}-{staging_name()}"
    with contextlib.ExitStack() as stack:
        # Open files keep their bytes, whatever is evicted meanwhile.
        opened = {
            sha256: (record, stack.enter_context(_open(cache, record)))
            for sha256, record in closure.records.items()
        }
        stack.callback(part.unlink, missing_ok=True)
        with part.open("xb") as file:
            with tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as tar:
                lock = closure.lock.dump()
                tar.addfile(_member(LOCK_NAME, len(lock)), io.BytesIO(lock))
                for record, source in opened.values():
                    _add(tar, record, source)
            file.flush()
            os.fsync(file.fileno())
        size = part.stat().st_size
        os.replace(part, path)
    return size


def unpack(
    stream: Readable, staging: Path, *, check_room: Callable[[int], object] | None = None
) -> Unpacked:
    """Read a bundle into ``staging``; the caller removes the files' names there.

    Args:
        stream: The bundle.
        staging: Directory of the files, on the cache's file system.
        check_room: Called with the bytes of all files before the first is read; raises StorageFull
            where they have no room. None compares them with what the file system has free.

    Raises:
        IntegrityError: It is damaged, incomplete, or holds what no bundle holds; nothing is left.
        InvalidSource: Its lock file is malformed.
        StorageFull: There is no room for it.
    """
    metered = _Metered(stream)
    files: dict[str, HashedFile] = {}
    try:
        with (
            _damage_named(),
            tarfile.open(fileobj=metered, mode="r|", bufsize=READ_BYTES) as tar,  # type: ignore[call-overload]  # it reads only
        ):
            members = iter(tar)
            lock = _read_lock(tar, next(members, None), metered)
            wanted = _by_content(lock)
            size = sum(entries[0].size for entries in wanted.values())
            if check_room is None:
                _check_room(staging, size)
            else:
                check_room(size)
            for member in members:
                entries = _wanted(member, wanted, files)
                metered.allow(member.size + HEADER_BYTES)
                content = tar.extractfile(member)
                assert content is not None  # noqa: S101  # a regular file has content
                files[entries[0].sha256] = _write(content, entries, staging / staging_name())
            for sha256, entries in wanted.items():
                if sha256 not in files:
                    raise _damaged(f"it lacks {entries[0].filename} ({sha256})")
    except BaseException:
        for file in files.values():
            file.path.unlink(missing_ok=True)
        raise
    return Unpacked(lock, files)


class _Metered:
    """A stream of which no more is read than its members were found to have."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._left = MAX_LOCK_BYTES + READ_BYTES + END_BYTES

    def allow(self, size: int) -> None:
        """Let so many more bytes be read."""
        self._left += size

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _damaged("it holds more than its members have")
        return data


class _HashedReader:
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data


def _member(name: str, size: int) -> tarfile.TarInfo:
    """A member's header without owner and time, so that equal models make equal bundles."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    return member


def _open(cache: CacheDir, record: FileRecord) -> IO[bytes]:
    try:
        return cache.path(record).open("rb")
    except FileNotFoundError:
        raise NotFound(
            f"{record.path} is no longer in the cache: it was removed to make room, or found "
            "damaged",
            hint="Warm the model again, then make the bundle",
        ) from None


def _add(tar: tarfile.TarFile, record: FileRecord, source: IO[bytes]) -> None:
    reader = _HashedReader(source)
    size = os.fstat(source.fileno()).st_size
    if size == record.size:
        tar.addfile(_member(BLOBS + record.sha256, size), reader)  # type: ignore[arg-type]  # it reads only
    if reader.sha256.hexdigest() != record.sha256:
        raise IntegrityError(
            f"{record.path} does not hold what was verified",
            hint="craftcache verify, then warm it again",
        )


def _read_lock(tar: tarfile.TarFile, member: tarfile.TarInfo | None, metered: _Metered) -> LockFile:
    if member is None or member.name != LOCK_NAME or not _is_plain(member):
        raise _damaged(f"it does not begin with {LOCK_NAME}")
    if member.size > MAX_LOCK_BYTES:
        raise _damaged(f"its lock has {counted(member.size, 'byte')}")
    metered.allow(HEADER_BYTES)
    content = tar.extractfile(member)
    assert content is not None  # noqa: S101  # a regular file has content
    return LockFile.parse(content.read(), name=LOCK_NAME)


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Whether it is a regular file, all of which is there: no link, no device, nothing sparse."""
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()


def _by_content(lock: LockFile) -> dict[str, list[LockEntry]]:
    """The entries of a lock by sha256; several files may have the same content."""
    found: dict[str, list[LockEntry]] = {}
    for entry in lock.entries():
        found.setdefault(entry.sha256, []).append(entry)
    return found


def _wanted(
    member: tarfile.TarInfo, wanted: dict[str, list[LockEntry]], have: dict[str, HashedFile]
) -> list[LockEntry]:
    """The entries of the lock that a member is the content of, by its name, kind and size."""
    name = member.name.removeprefix(BLOBS)
    entries = wanted.get(name)
    if not _is_plain(member) or entries is None or member.name != BLOBS + name or name in have:
        raise _damaged(f"{member.name[:200]!r} is nothing that its lock names")
    for entry in entries:
        if member.size != entry.size:
            raise _damaged(
                f"{entry.filename} has {counted(member.size, 'byte')} where its lock "
                f"has {entry.size}"
            )
    return entries


def _write(content: IO[bytes], entries: list[LockEntry], path: Path) -> HashedFile:
    """Write one blob, and keep it if it is what the lock says."""
    entry = entries[0]
    git_etags = {each.etag for each in entries if each.etag and len(each.etag) == GIT_DIGITS}
    hasher = Hasher(git_size=entry.size if git_etags else None)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            while data := content.read(READ_BYTES):
                hasher.update(data)
                _write_all(file, data)
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
            stamp = Stamp.of(os.fstat(descriptor))
        digests = hasher.digests()
        if digests.sha256 != entry.sha256:
            raise _damaged(f"sha256 of {entry.filename} is {digests.sha256}, not {entry.sha256}")
        if git_etags - {digests.git_sha1}:
            raise _damaged(f"{entry.filename} is not what its etag says")
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in FULL:
            raise storage_full(path.parent, entry.size, error=error, least=1) from error
        raise
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return HashedFile(path, digests, stamp)


def _write_all(file: io.FileIO | IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _check_room(staging: Path, size: int) -> None:
    if size > free_bytes(staging):
        raise storage_full(staging, size)


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    """A context in which what tarfile says of a broken archive is an IntegrityError."""
    try:
        yield
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(str(error)) from error


def _damaged(how: str) -> IntegrityError:
    return IntegrityError(
        f"the bundle is damaged: {how}",
        hint="Nothing of it was imported. Copy it again, or make it anew",
    )
