"""Promises of size and digest that origins give of a file, and their verification."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from craftcache.amounts import counted

from .errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "Digest",
    "Promise",
    "Hasher",
    "Digests",
    "Stamp",
    "HashedFile",
    "hash_file",
    "hash_stamped",
    "hash_descriptor",
]

READ_BYTES = 4 * 1024 * 1024
"""Bytes read at once when a file is hashed: large for the disk, small for the CPU's cache."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Digest:
    r"""A digest as an origin gives it.

    Attributes:
        algorithm: ``sha256`` (64 hex digits), ``sha256-prefix`` (8 to 63, torch.hub's file names)
            or ``git-sha1`` (40, ``sha1(b"blob <size>\0" + data)``, the Hub's small files).
        hex: The digits, in lower case.
    """

    algorithm: Literal["sha256", "sha256-prefix", "git-sha1"]
    hex: str

    @classmethod
    def from_hub_etag(cls, etag: str) -> Digest | None:
        """The digest that a Hub ETag is, or None for an ETag that is none."""
        if _SHA256.fullmatch(etag):
            return cls("sha256", etag)
        if _GIT_SHA1.fullmatch(etag):
            return cls("git-sha1", etag)
        return None


@dataclass(frozen=True, slots=True)
class Promise:
    """The size, digest and validator that an origin gave of a file before its first byte.

    Attributes:
        size: Size in bytes, or None where the origin gave no length.
        digest: The digest, or None where the origin has none: then the sha256 is recorded at
            first sight.
        etag: The strong validator for ranges and revalidation, unquoted, or None.
    """

    size: int | None = None
    digest: Digest | None = None
    etag: str | None = None

    def is_kept_by(self, digests: Digests) -> bool:
        """Whether ``digests`` are those of the promised file."""
        try:
            self.check(digests, source="")
        except IntegrityError:
            return False
        return True

    def check(self, digests: Digests, *, source: str) -> None:
        """Raise IntegrityError unless ``digests`` are those of the promised file."""
        if self.size is not None and digests.size != self.size:
            raise IntegrityError(
                f"got {counted(digests.size, 'byte')} where the origin promised {self.size}",
                source=source,
                hint="Nothing was kept; try again, and if it persists tell the publisher",
            )
        if self.digest is None:
            return
        actual = digests.git_sha1 if self.digest.algorithm == "git-sha1" else digests.sha256
        if not actual.startswith(self.digest.hex):
            raise IntegrityError(
                f"{self.digest.algorithm} is {actual[: len(self.digest.hex)]} where the origin "
                f"promised {self.digest.hex}",
                source=source,
                hint="Nothing was kept; try again, and if it persists tell the publisher",
            )


@dataclass(frozen=True, slots=True)
class Digests:
    """The size in bytes and the digests, in hex, of bytes that were hashed.

    ``git_sha1`` is empty unless the Hasher was asked for it.
    """

    size: int
    sha256: str
    git_sha1: str = ""


@dataclass(frozen=True, slots=True)
class Stamp:
    """The identity and state of a file: a write, or another file in its place, changes it.

    Other names of the file, and a change of its mode, do not: they move its ``ctime_ns``, which
    counts in no comparison.
    """

    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int = field(default=0, compare=False)

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp of the file with this stat."""
        return cls(status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A hashed file: its path, its digests, and its stamp when it was hashed."""

    path: Path
    digests: Digests
    stamp: Stamp

    def named(self, path: Path, give_name: Callable[[Path, Path], None]) -> HashedFile:
        """The file under another name, whose stamp has the time of change that this gave it.

        What others did before is not taken for ours: then the stamp stays one that the file has no
        more.

        Args:
            path: The other name.
            give_name: Gives it, as ``os.link`` and ``os.rename`` do.

        Raises:
            OSError: As ``give_name`` does.
        """
        is_touched = self.path.stat().st_ctime_ns != self.stamp.ctime_ns
        give_name(self.path, path)
        if is_touched:
            return replace(self, path=path)
        ctime_ns = path.stat().st_ctime_ns
        return replace(self, path=path, stamp=replace(self.stamp, ctime_ns=ctime_ns))

    def check_untouched(
        self, is_known: Callable[[os.stat_result], bool] = lambda _status: False
    ) -> None:
        """Raise IntegrityError unless ``path`` still is the file that was hashed.

        It is hashed again if anything at all was done to it since, such as another name: a write
        whose time was put back looks the same.

        Args:
            is_known: Whether a file with that stat is known to hold these bytes: then it need not
                be hashed again.
        """
        status = self.path.stat()
        is_same = Stamp.of(status) == self.stamp and (
            status.st_ctime_ns == self.stamp.ctime_ns
            or is_known(status)
            or hash_file(self.path).sha256 == self.digests.sha256
        )
        if not is_same:
            raise IntegrityError(
                f"{self.path} was changed after it was verified",
                hint="Nothing of it was published; try again",
                retryable=True,
            )


class Hasher:
    """Hashes a file as its bytes arrive in order.

    Args:
        git_size: The file's promised size, where a git blob sha1 is wanted beside the sha256
            (git puts the size in front of the data, so it must be known first).
    """

    def __init__(self, *, git_size: int | None = None) -> None:
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._git = None if git_size is None else hashlib.sha1(usedforsecurity=False)
        if self._git is not None:
            self._git.update(b"blob %d\0" % (git_size or 0))

    @classmethod
    def for_promise(cls, promise: Promise) -> Hasher:
        """The hasher that can check ``promise``."""
        wants_git = promise.digest is not None and promise.digest.algorithm == "git-sha1"
        return cls(git_size=promise.size if wants_git else None)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take in the next bytes of the file."""
        view = memoryview(data)
        self._size += view.nbytes
        self._sha256.update(view)
        if self._git is not None:
            self._git.update(view)

    def digests(self) -> Digests:
        """The digests of all bytes taken in so far."""
        git = "" if self._git is None else self._git.hexdigest()
        return Digests(self._size, self._sha256.hexdigest(), git)


def _open_regular(path: Path) -> int:
    """Open a file that has an end: a pipe or a device in its place may have none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def hash_file(path: Path, *, git: bool = False) -> Digests:
    """Hash a whole file (blocking; about a second per gigabyte on one core).

    Args:
        path: The file.
        git: Whether a git blob sha1 is wanted beside the sha256.

    Raises:
        OSError: The file cannot be read.
    """
    descriptor = _open_regular(path)
    try:
        return hash_descriptor(descriptor, git=git)
    finally:
        os.close(descriptor)


def hash_stamped(path: Path, *, git: bool = False) -> HashedFile:
    """Hash a whole file that is to be trusted from now on, and make it durable.

    Raises:
        OSError: The file cannot be read, or was changed meanwhile.
    """
    descriptor = _open_regular(path)
    try:
        stamp = Stamp.of(os.fstat(descriptor))
        digests = hash_descriptor(descriptor, git=git)
        os.fsync(descriptor)  # another program may have written it, without fsync
        if Stamp.of(os.fstat(descriptor)) != stamp:
            raise OSError(errno.EBUSY, "the file was changed while it was hashed", str(path))
    finally:
        os.close(descriptor)
    return HashedFile(path, digests, stamp)


def hash_descriptor(descriptor: int, *, git: bool = False) -> Digests:
    """Hash a whole open file, wherever its position is; see hash_file."""
    hasher = Hasher(git_size=os.fstat(descriptor).st_size if git else None)
    buffer = bytearray(READ_BYTES)
    view = memoryview(buffer)
    position = 0
    while count := os.preadv(descriptor, [buffer], position):
        hasher.update(view[:count])
        position += count
    return hasher.digests()
