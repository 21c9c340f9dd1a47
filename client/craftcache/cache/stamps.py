"""Which files were found to have which digest, so that none is hashed at every load.

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
from .sealed import check_seal, seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from craftcache.digests import HashedFile, Stamp

__all__ = ["FileStamp", "Stamps"]

MAX_STAMPS = 8
"""Kept for one digest: of the few places in which the same bytes may stand."""

MAX_BYTES = 64 * 1024

TICK_SECONDS = 0.02
"""Longer than the kernel's clock for timestamps stands still: two writes within one of its ticks
leave one ctime, so a file that was touched just now is hashed a tick later."""


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

    What was read once is kept in memory: it stays true, whatever becomes of the file it stood in.

    Args:
        directory: Where they are.
        staging: Where new ones are written first.
        is_ours: Whether a file with that stat can have been written by trusted owners only.

    Attributes:
        directory: See the argument.
    """

    def __init__(
        self, directory: Path, staging: Path, is_ours: Callable[[os.stat_result], bool]
    ) -> None:
        self.directory = directory
        self._staging = staging
        self._is_ours = is_ours
        self._known: defaultdict[str, frozenset[FileStamp]] = defaultdict(frozenset)

    def path(self, sha256: str) -> Path:
        """Where the stamps of the files with that digest are written down."""
        return self.directory / f"{sha256}.json"

    def paths(self) -> Iterator[Path]:
        """All files that stand where path says."""
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

    def record(self, sha256: str, stamp: FileStamp) -> None:
        """Remember that a file was found to have that digest; on the disk too where that works."""
        kept = dict.fromkeys((stamp, *self._known[sha256], *self._read(sha256)))
        stamps = list(kept)[:MAX_STAMPS]
        self._known[sha256] = frozenset(stamps)
        document = seal({"version": 1, "sha256": sha256, "stamps": stamps})
        with contextlib.suppress(OSError):  # the cache may be read-only, or another's
            make_directory(self.directory)
            write_file(self.path(sha256), document, staging=self._staging, durable=False)

    def hash(self, path: Path, *, git: bool = False) -> HashedFile:
        """Hash a whole file and remember what it was found to be; see verify.hash_stamped.

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
        """Around a change of ours to a file's names or mode, which moves its ctime.

        A file whose stamp was right before has a right one afterwards; of any other nothing is
        said, nor of one that is not there.
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
        """The stamps that are written down; none where somebody else can have written them."""
        try:
            with self.path(sha256).open("rb", buffering=0) as file:
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
    """Wait until a write to the file would move its ctime, where it was touched just now."""
    if abs(time.time() - status.st_ctime) < TICK_SECONDS:
        time.sleep(TICK_SECONDS)


def _is_same_but_ctime(before: os.stat_result, after: os.stat_result) -> bool:
    return FileStamp.of(before)[:3] == FileStamp.of(after)[:3]
