"""The manifests of a cache directory, each read again only when its file changed.

What is published is decided by the files alone: every question is answered after a stat of the
manifest's file, and a manifest in memory stands for its file only while the stat is the same. So a
cache of thousands of models is listed in milliseconds, and forgetting all of it costs one reading.
All calls block; any thread may make them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from .durable import make_directory, write_file
from .manifest import MAX_BYTES, Manifest, ManifestError
from .plain_file import plain
from .stamps import TICK_SECONDS, FileStamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Catalog"]

SUFFIX = ".json"


class Catalog:
    """Finds, lists and writes manifests.

    Args:
        directory: Directory of the files.
        staging: Directory that new files are written in first.
        is_ours: Returns whether only trusted users can have written a file with that stat.
        is_owned: Returns whether a trusted user owns a file with that stat.
        on_read: Called with each manifest of ours that was read or is read again.

    Attributes:
        directory: Directory of the files.
    """

    def __init__(
        self,
        directory: Path,
        staging: Path,
        *,
        is_ours: Callable[[os.stat_result], bool],
        is_owned: Callable[[os.stat_result], bool],
        on_read: Callable[[Manifest], None],
    ) -> None:
        self.directory = directory
        self._prefix = os.path.join(directory, "")
        self._staging = staging
        self._is_ours = is_ours
        self._is_owned = is_owned
        self._on_read = on_read
        # Entries are replaced whole, and each is true of its stamp whoever put it there.
        # Without a stamp: as it was read, though its file may have changed in the same moment.
        self._read: dict[str, tuple[FileStamp | None, Manifest]] = {}
        # Guards the fields below, which say who has which content or commit: digests and revisions
        # are told apart by their length. No lock is taken inside.
        self._holding = threading.Lock()
        self._holders: defaultdict[str, set[str]] = defaultdict(set)
        self._held: dict[str, tuple[int, frozenset[str]]] = {}
        self._listed: tuple[int, int] | None = None
        # Written by this process since the last look; changed without the lock, for a process that
        # is forked while another thread holds it could write no more.
        self._rewritten: set[str] = set()

    def path(self, key: str) -> Path:
        """Path of the manifest with that key, see manifest.manifest_key."""
        return self.directory / f"{key}{SUFFIX}"

    def keys(self) -> list[str]:
        """The keys of all manifests, of those too that this release cannot read."""
        try:
            names = os.listdir(self.directory)
        except OSError:
            return []
        return [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]

    def find(self, key: str) -> tuple[Manifest, os.stat_result] | None:
        """The manifest with that key and the stat of its file; None if there is none to be read."""
        path = f"{self._prefix}{key}{SUFFIX}"
        try:
            status = os.stat(path)
            known = self._read.get(key)
            if known is not None and known[0] == FileStamp.of(status):
                return known[1], status
            data, status = _read_file(path)
            manifest = Manifest.parse(data, key)
        except FileNotFoundError:
            self._read.pop(key, None)
            return None
        except (OSError, ManifestError):
            return None
        # Two writes within one tick of the kernel's clock may leave the same stamp.
        is_settled = abs(time.time() - status.st_ctime) > TICK_SECONDS
        self._read[key] = FileStamp.of(status) if is_settled else None, manifest
        if self._is_ours(status):
            self._on_read(manifest)
        return manifest, status

    def remembered(self, key: str) -> Manifest | None:
        """The manifest with that key as it was last read here; None if it never was, or is gone."""
        known = self._read.get(key)
        return known and known[1]

    def at(self, key: str, *, ours: bool = False, owned: bool = False) -> Manifest | None:
        """The manifest with that key; None where there is none that can be read.

        Args:
            key: See manifest.manifest_key.
            ours: Whether to leave out a manifest that an untrusted user can have written.
            owned: Whether to leave out a manifest that an untrusted user owns; one of ours that
                others may write to is returned.
        """
        found = self.find(key)
        if found is None:
            return None
        manifest, status = found
        if (ours and not self._is_ours(status)) or (owned and not self._is_owned(status)):
            return None
        return manifest

    def published(
        self, *, ours: bool = False, owned: bool = False
    ) -> Iterator[tuple[str, Manifest]]:
        """All manifests with their keys, in no order; see at."""
        for key in self.keys():
            if manifest := self.at(key, ours=ours, owned=owned):
                yield key, manifest

    def holders(
        self, sha256: str, *, ours: bool = False, owned: bool = False
    ) -> list[tuple[str, Manifest]]:
        """The manifests that name a file with that digest, and their keys; see at."""
        return [
            (key, manifest)
            for key, manifest in self._naming(sha256, ours=ours, owned=owned)
            if any(record.sha256 == sha256 for record in manifest.files)
        ]

    def at_revision(
        self, revision: str, *, ours: bool = False, owned: bool = False
    ) -> list[tuple[str, Manifest]]:
        """The manifests of that revision, and their keys; see at."""
        return [
            (key, manifest)
            for key, manifest in self._naming(revision, ours=ours, owned=owned)
            if manifest.revision == revision
        ]

    def write(self, key: str, manifest: Manifest) -> None:
        """Publish a manifest: written, fsynced, renamed, and its directory fsynced."""
        make_directory(self.directory)
        write_file(self.path(key), manifest.dump(key), staging=self._staging)
        self._rewritten.add(key)

    def _naming(self, text: str, *, ours: bool, owned: bool) -> Iterator[tuple[str, Manifest]]:
        """The manifests that named a digest or revision when they were looked at, as they are."""
        with self._holding:
            self._list_again()
            keys = tuple(self._holders.get(text, ()))
        for key in keys:
            if manifest := self.at(key, ours=ours, owned=owned):
                yield key, manifest

    def _list_again(self) -> None:
        """Look who holds what, at those names that lead to another file than at the last look."""
        try:
            status = os.stat(self.directory)
            if (status.st_mtime_ns, status.st_ino) == self._listed:
                return
            with os.scandir(self.directory) as entries:
                inodes = {
                    entry.name.removesuffix(SUFFIX): entry.inode()
                    for entry in entries
                    if entry.name.endswith(SUFFIX)
                }
        except OSError:
            inodes, status = {}, None
        rewritten, self._rewritten = self._rewritten, set()
        for key in self._held.keys() - inodes.keys():
            self._hold(key, 0, frozenset())
            del self._held[key]
        for key, inode in inodes.items():
            if key in rewritten or self._held.get(key, (0,))[0] != inode:
                manifest = self.at(key)
                self._hold(key, inode, _names(manifest) if manifest else frozenset())
        is_settled = status and abs(time.time() - status.st_mtime) > TICK_SECONDS
        self._listed = (status.st_mtime_ns, status.st_ino) if status and is_settled else None

    def _hold(self, key: str, inode: int, names: frozenset[str]) -> None:
        _, before = self._held.get(key, (0, frozenset()))
        for name in before - names:
            self._holders[name].discard(key)
            if not self._holders[name]:
                del self._holders[name]
        for name in names - before:
            self._holders[name].add(key)
        self._held[key] = inode, names


def _names(manifest: Manifest) -> frozenset[str]:
    """What a manifest is found by: the digests of its files, and its revision."""
    return frozenset((*(record.sha256 for record in manifest.files), manifest.revision))


def _read_file(path: str) -> tuple[bytes, os.stat_result]:
    """The first MAX_BYTES of a file and its stat; thousands are read at a start."""
    descriptor = plain(path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        # No more is asked for than is there: a buffer of MAX_BYTES takes as long as all the rest.
        return os.read(descriptor, min(status.st_size, MAX_BYTES)), status
    finally:
        os.close(descriptor)
