"""Stamps: which files have which digest, so that a file is not hashed at every load.

A *stamp* is a file's size, inode, mtime and ctime. The kernel moves the ctime at every write and
every change of owner, mode or name, and nobody can set it back: a file that still has a stamp that
was recorded for a digest still has that digest. One that does not may have been restored, copied,
given another mode, or written to: it is hashed once, and then its stamp is recorded. So a stamp is
never a reason to drop anything, and losing all of them costs one hash a file.

Stamps belong to content and not to a model: ``stamps/<sha256>.json`` is of all files with those
bytes, whichever manifests name them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from craftcache.digests import hash_descriptor, hash_stamped

from .durable import make_directory, write_file
from .plain_file import plain
from .sealed import check_seal, seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from craftcache.digests import HashedFile, Stamp

__all__ = ["FileStamp", "Stamps"]

MAX_STAMPS = 8
"""Stamps kept for one digest: the same bytes are in a few places at most."""

MAX_BYTES = 64 * 1024

TICK_SECONDS = 0.02
"""More than a tick of the kernel's clock for timestamps: two writes within one tick leave the same
ctime, so a file that was touched just now is hashed a tick later."""


class FileStamp(NamedTuple):
    """The identity and state of a file, from its stat.

    Attributes:
        size: Size in bytes.
        inode: Inode number.
        mtime_ns: Time of the last write, in nanoseconds since the epoch; its writer may set it.
        ctime_ns: Time of the last change of any kind, in the same unit; the kernel sets it.
    """

    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """The stamp of the file with this stat."""
        return cls(status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)

    @classmethod
    def of_stamp(cls, stamp: Stamp) -> FileStamp:
        """A stamp that was taken when the file was hashed."""
        return cls(stamp.size, stamp.inode, stamp.mtime_ns, stamp.ctime_ns)


class Stamps:
    """The stamps of one cache directory; thread-safe.

    It has no lock: sets of stamps are replaced whole, and a stamp that two threads record at once
    and one loses costs one more hash. Stamps that were read once are kept in memory: they stay
    true, whatever becomes of the file that they were read from.

    Args:
        directory: Directory of the files of stamps.
        staging: Directory that new files are written in first.
        is_ours: Returns whether a file with that stat can have been written by trusted users only.

    Attributes:
        directory: Directory of the files of stamps.
    """

    def __init__(
        self, directory: Path, staging: Path, is_ours: Callable[[os.stat_result], bool]
    ) -> None:
        self.directory = directory
        self._staging = staging
        self._is_ours = is_ours
        self._known: defaultdict[str, frozenset[FileStamp]] = defaultdict(frozenset)

    def path(self, sha256: str) -> Path:
        """Path of the file with the stamps for that digest."""
        return self.directory / f"{sha256}.json"

    def paths(self) -> Iterator[Path]:
        """All files of stamps."""
        return self.directory.glob("*.json")

    def has(
        self,
        sha256: str,
        status: os.stat_result,
        *,
        is_trusted: Callable[[Path], bool] = lambda _: True,
    ) -> bool:
        """Whether a file with this stat was found to have that digest, and was not touched since.

        Args:
            sha256: The digest.
            status: Stat of the file.
            is_trusted: Called with the path of a file of stamps, before its stamps are used.
        """
        stamp = FileStamp.of(status)
        if stamp in self._known[sha256]:
            return True
        read = self._read(sha256)
        if stamp not in read or not is_trusted(self.path(sha256)):
            return False
        self._known[sha256] |= read
        return True

    def record(self, sha256: str, stamp: FileStamp, *, is_passing: bool = False) -> None:
        """Record that a file has that digest; on the disk too, unless that fails.

        Args:
            sha256: The digest.
            stamp: The stamp of the file.
            is_passing: Whether this process is about to change the stamp, and record it again: then
                the disk need not have it.
        """
        if is_passing:
            self._known[sha256] |= {stamp}
            return
        kept = dict.fromkeys((stamp, *self._known[sha256], *self._read(sha256)))
        stamps = list(kept)[:MAX_STAMPS]
        self._known[sha256] = frozenset(stamps)
        document = seal({"version": 1, "sha256": sha256, "stamps": stamps})
        with contextlib.suppress(OSError):  # the cache may be read-only, or another's
            make_directory(self.directory)
            write_file(self.path(sha256), document, staging=self._staging, durable=False)

    def forget(self, sha256: str) -> None:
        """Forget all stamps for that digest: its files are hashed before they are believed."""
        self._known.pop(sha256, None)
        with contextlib.suppress(IsADirectoryError):  # nothing is read from that
            self.path(sha256).unlink(missing_ok=True)

    def hash(self, path: Path, *, git: bool = False) -> HashedFile:
        """Hash a whole file and record its stamp; see digests.hash_stamped.

        Raises:
            OSError: The file cannot be read, or was changed meanwhile.
        """
        _let_tick_pass(path.stat())
        hashed = hash_stamped(path, git=git)
        self.record(hashed.digests.sha256, FileStamp.of_stamp(hashed.stamp))
        return hashed

    def hash_descriptor(self, descriptor: int, *, is_lasting: bool) -> str:
        """The sha256 of an open file.

        Args:
            descriptor: Descriptor of the file.
            is_lasting: Whether to remember it: not for a file that others may write to.

        Raises:
            OSError: It cannot be read.
        """
        before = os.fstat(descriptor)
        _let_tick_pass(before)
        sha256 = hash_descriptor(descriptor).sha256
        stamp = FileStamp.of(before)
        if is_lasting and stamp == FileStamp.of(os.fstat(descriptor)):
            self.record(sha256, stamp)
        return sha256

    @contextlib.contextmanager
    def keeping(self, sha256: str, path: Path) -> Iterator[None]:
        """A context for our own change of a file's names or mode, which moves its ctime.

        If the file had a recorded stamp before, its new stamp is recorded afterwards. For other
        files, and for a missing one, nothing is recorded.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            yield
            return
        try:
            before = os.fstat(descriptor)
            yield
            after = os.fstat(descriptor)
            if after.st_nlink and self.has(sha256, before) and _is_same_but_ctime(before, after):
                self.record(sha256, FileStamp.of(after))
        finally:
            os.close(descriptor)

    def _read(self, sha256: str) -> frozenset[FileStamp]:
        """The stamps on the disk; none if a user who is not trusted can have written the file."""
        try:
            with open(self.path(sha256), "rb", buffering=0, opener=plain) as file:
                if not self._is_ours(os.fstat(file.fileno())):
                    return frozenset()
                document = json.loads(file.read(MAX_BYTES) or b"")
            check_seal(document)
            if document["version"] != 1 or document["sha256"] != sha256:
                return frozenset()
            return frozenset(FileStamp(*map(int, stamp)) for stamp in document["stamps"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return frozenset()


def _let_tick_pass(status: os.stat_result) -> None:
    """Wait, if the file was touched just now, until a further write would move its ctime."""
    if abs(time.time() - status.st_ctime) < TICK_SECONDS:
        time.sleep(TICK_SECONDS)


def _is_same_but_ctime(before: os.stat_result, after: os.stat_result) -> bool:
    return FileStamp.of(before)[:3] == FileStamp.of(after)[:3]
