"""The cache directory: its layout, the states of its files, and which files are trusted.

    <cache directory>/
      models--org--name/, .locks/   huggingface_hub's own, see hub_cache
      .craftcache/
        staging/                    files that are not verified yet; never a final name
        blobs/sha256/<hex>          verified files that came from a URL or a watch
        index/<hex>.json            the index of the checkpoint with that sha256
        stamps/<hex>.json           stamps of the files that were found to have that sha256
        manifests/<key>.json        the files that a source consists of
        underway/<name>.json        the files that are being published or removed, see underway
        torch/hub/checkpoints/      links to URL files whose name carries their hash, for torch.hub
        quarantine/                 files that failed verification later, never served

A file lives through four states: *staged* (partial or unverified, in ``staging/``), *verified*
(hashed, still in ``staging/``), *published* (linked to its final name and named by a manifest) and
*evicted* (unlinked; processes that have it open keep its bytes). A verified checkpoint is inspected
too; the daemon leaves out the files of dependencies until somebody asks for them by name. A
published file is never replaced by one with the same bytes: a further source with these bytes uses
it too, and any number of manifests may name it. A file whose stamp does not match is hashed again
before anything is decided about it; only a file with other bytes goes to quarantine.

A manifest holds the digest of each index beside that of its blob, and only files that these digests
cover are served. All calls here block.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from craftcache.checkpoint.index import MAX_BYTES as INDEX_MAX_BYTES
from craftcache.checkpoint.index import InvalidIndex
from craftcache.checkpoint.index import parse as parse_index
from craftcache.config import daemon_uid

from .cache_format import newer_format
from .catalog import Catalog
from .durable import make_directory, staging_name, sync_directory, write_file
from .hub_cache import LOCK_SECONDS, HubTree
from .manifest import manifest_key
from .ownership import make_ours
from .paths import real_path
from .placing import move_away
from .plain_file import read_plain
from .stamps import Stamps
from .torch_links import TorchLinks
from .url_blobs import BLOB_MODE, UrlBlobs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from craftcache.checkpoint.index import Index
    from craftcache.dependencies import Dependency
    from craftcache.digests import HashedFile
    from craftcache.sources import RemoteSource

    from .manifest import FileRecord, Manifest

__all__ = ["CacheDir", "OWNER_PREFIX"]


OWNER_PREFIX = ".craftcache/owner/"
"""What the paths of records begin with whose files are in another daemon's cache."""


@dataclass(frozen=True, slots=True)
class CacheDir:
    """One cache directory, existing or not.

    Attributes:
        root: Absolute path of the directory.
        trusted_uids: Users whose files are used without hashing them again.
        private: The directory of everything that is not huggingface_hub's.
        staging: Directory of files before they have a final name; on the same file system.
        directories: Those that writing needs.
        stamps: Stamps of its verified files; our own changes of a file that would change its stamp
            go through ``stamps.keeping``.
        torch: Links by which torch.hub finds files from URLs.
        url_blobs: The blobs of URLs and watches.
    """

    root: Path
    trusted_uids: frozenset[int] = field(default_factory=lambda: _trusted_uids())
    stamps: Stamps = field(init=False, repr=False, compare=False)
    torch: TorchLinks = field(init=False, repr=False, compare=False)
    url_blobs: UrlBlobs = field(init=False, repr=False, compare=False)
    # Digests of indexes by that of their checkpoint, as manifests of ours and this process have it.
    _vouched: defaultdict[str, set[str]] = field(
        default_factory=lambda: defaultdict(set), init=False, repr=False, compare=False
    )
    private: Path = field(init=False, repr=False, compare=False)
    staging: Path = field(init=False, repr=False, compare=False)
    directories: tuple[Path, ...] = field(init=False, repr=False, compare=False)
    # All joined once: joining them for each hit would make hits a third slower.
    _indexes: Path = field(init=False, repr=False, compare=False)
    _catalog: Catalog = field(init=False, repr=False, compare=False)
    _prefix: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "private", self.root / ".craftcache")
        object.__setattr__(self, "staging", self.private / "staging")
        object.__setattr__(self, "_indexes", self.private / "index")
        object.__setattr__(self, "_prefix", os.path.join(self.root, ""))
        catalog = Catalog(
            self.private / "manifests",
            self.staging,
            is_ours=self.is_ours,
            is_owned=lambda status: status.st_uid in self.trusted_uids,
            on_read=self._vouch,
        )
        object.__setattr__(self, "_catalog", catalog)
        stamps = Stamps(self.private / "stamps", self.staging, self.is_ours)
        object.__setattr__(self, "stamps", stamps)
        torch_links = TorchLinks(self.private / "torch", self.staging)
        object.__setattr__(self, "torch", torch_links)
        url_blobs = UrlBlobs(
            self.private / "blobs" / "sha256",
            self.staging,
            stamps,
            is_ours=self.is_ours,
            set_aside=self.set_aside,
        )
        object.__setattr__(self, "url_blobs", url_blobs)
        directories = (
            self.staging,
            url_blobs.directory,
            self._indexes,
            catalog.directory,
            stamps.directory,
            torch_links.checkpoints,
        )
        object.__setattr__(self, "directories", directories)

    @property
    def owner(self) -> Path:
        """The link to another daemon's cache, of which files are served in place."""
        return self.private / "owner"

    @staticmethod
    def is_owners(record: FileRecord) -> bool:
        """Whether the file belongs to another daemon's cache, so that nothing is done to it."""
        return record.path.startswith(OWNER_PREFIX)

    @property
    def quarantine(self) -> Path:
        """Directory that files with wrong content are moved to."""
        return self.private / "quarantine"

    def create(self) -> None:
        """Make the directories that writing needs.

        Raises:
            OSError: They cannot be made.
        """
        for directory in self.directories:
            make_directory(directory)

    def is_made(self) -> bool:
        """Whether the directories that writing needs are there."""
        return all(directory.is_dir() for directory in self.directories)

    def hub_tree(self, repo_id: str) -> HubTree:
        """The part that belongs to one Hub repository."""
        return HubTree(self.root, repo_id, self.staging, self.quarantine, self.is_ours, self.stamps)

    def path(self, record: FileRecord) -> Path:
        """Path of the blob of ``record``."""
        return self.root / record.path

    def path_text(self, record: FileRecord) -> str:
        """Path of the blob of ``record`` as a string, for thousands of them at once."""
        return self._prefix + record.path

    def relative(self, path: Path) -> str:
        """``path`` relative to the cache directory, as in a FileRecord."""
        return path.relative_to(self.root).as_posix()

    def shown(self, path: Path) -> str:
        """``path`` for people, which a link may have led out of the cache directory."""
        return self.relative(path) if path.is_relative_to(self.root) else str(path)

    def index_path(self, sha256: str) -> Path:
        """Path of the index of the checkpoint with that sha256."""
        return self._indexes / f"{sha256}.json"

    def indexes(self) -> Iterator[Path]:
        """All files of indexes, of published checkpoints or not."""
        return self._indexes.glob("*.json")

    def index(self, record: FileRecord) -> Index | None:
        """The index of a published file; None where it has none that is right and readable."""
        data = self.read_index(record)
        try:
            return None if data is None else parse_index(data, file_size=record.size)
        except InvalidIndex:
            return None

    def read_index(self, record: FileRecord) -> bytes | None:
        """Bytes of a file's index; None unless their digest is that of ``record``."""
        data = self._index_content(record.sha256)
        if data is None or hashlib.sha256(data).hexdigest() != record.index_sha256:
            return None
        return data

    def vouched_index(self, sha256: str) -> tuple[str, bytes] | None:
        """The index of a checkpoint and its digest, if we wrote it or a manifest of ours has it."""
        data = self._index_content(sha256)
        digest = hashlib.sha256(data or b"").hexdigest()
        return (digest, data) if data is not None and digest in self._vouched[sha256] else None

    def index_digest(self, sha256: str) -> str | None:
        """Digest of a checkpoint's index for a new manifest; None if no index is vouched for."""
        vouched = self.vouched_index(sha256)
        return vouched and vouched[0]

    def forget_index(self, sha256: str) -> None:
        """Drop the index of a checkpoint whose file was wrong: it may have been made of that."""
        self._vouched.pop(sha256, None)
        self._clear(self.index_path(sha256))

    def _index_content(self, sha256: str) -> bytes | None:
        try:
            return read_plain(self.index_path(sha256), INDEX_MAX_BYTES + 1)
        except OSError:
            return None

    def manifest_path(self, key: str) -> Path:
        """Path of the manifest with that key, see manifest.manifest_key."""
        return self._catalog.path(key)

    def manifest(self, source: RemoteSource) -> Manifest | None:
        """The published manifest of ``source``; None where there is none that can be read."""
        return self.manifest_at(manifest_key(source))

    def manifest_at(self, key: str, *, ours: bool = False, owned: bool = False) -> Manifest | None:
        """The published manifest with that key; see Catalog.at."""
        return self._catalog.at(key, ours=ours, owned=owned)

    def find_manifest(self, key: str) -> tuple[Manifest, os.stat_result] | None:
        """The published manifest with that key, and the stat of its file; see Catalog.find."""
        return self._catalog.find(key)

    def remembered_manifest(self, key: str) -> Manifest | None:
        """The manifest with that key as it was last read in this process; see Catalog."""
        return self._catalog.remembered(key)

    def manifests(self) -> Iterator[Manifest]:
        """All published manifests, in no order."""
        return (manifest for _, manifest in self.published())

    def published(
        self, *, ours: bool = False, owned: bool = False
    ) -> Iterator[tuple[str, Manifest]]:
        """All published manifests with their keys, in no order; see Catalog.at."""
        return self._catalog.published(ours=ours, owned=owned)

    def holders(self, sha256: str, *, ours: bool = False) -> list[tuple[str, Manifest]]:
        """The published manifests that name a file with that digest, with their keys."""
        return self._catalog.holders(sha256, ours=ours)

    def at_revision(self, revision: str, *, ours: bool = False) -> list[tuple[str, Manifest]]:
        """The published manifests of that revision, with their keys."""
        return self._catalog.at_revision(revision, ours=ours)

    def manifest_keys(self) -> list[str]:
        """The keys of all manifests, of those too that this release cannot read."""
        return self._catalog.keys()

    def _vouch(self, manifest: Manifest) -> None:
        for record in manifest.files:
            if record.index_sha256 is not None:
                self._vouched[record.sha256].add(record.index_sha256)

    def is_intact(self, record: FileRecord) -> bool:
        """Whether the blob is there and untouched since it was verified (one stat)."""
        try:
            return self.stamps.has(record.sha256, os.stat(self.path_text(record)))
        except OSError:
            return False

    def hash_again(self, record: FileRecord) -> HashedFile:
        """Hash a blob whose stamp does not match, and record its new stamp.

        A blob that others may write to is made ours first: it must not change after it is hashed.

        Raises:
            OSError: The blob is missing, cannot be read or made ours, or was changed meanwhile.
        """
        path = self.path(record)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device may have no end
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if not self.is_ours(status) and not self.is_owners(record):
            make_ours(path, mode=BLOB_MODE)
        return self.stamps.hash(path)

    def has_need(self, need: Dependency) -> bool:
        """Whether all needed files of a dependency are published and untouched."""
        manifest = self.manifest(need.parsed)
        return manifest is not None and self.meets(manifest, need)

    def meets(self, manifest: Manifest, need: Dependency) -> bool:
        """Whether a published model is untouched and has all files that ``need`` asks for."""
        names = [record.filename for record in manifest.files if self.is_intact(record)]
        return len(names) == len(manifest.files) and need.is_met_by(names)

    def is_trusted(self, path: Path) -> bool:
        """Whether only trusted users can have written ``path``.

        True if it and its parents up to the cache directory, links resolved, belong to root, the
        daemon's configured user or this process's, and no other user may write to them.
        """
        try:
            resolved = real_path(path)
            root = real_path(self.root)
            if not resolved.is_relative_to(root):
                return False
            steps = (resolved, *(p for p in resolved.parents if p.is_relative_to(root)))
            return all(self.is_ours(os.lstat(step)) for step in steps)
        except OSError:
            return False

    def is_ours(self, status: os.stat_result) -> bool:
        """Whether only trusted users can have written a file with this stat."""
        others_may_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return status.st_uid in self.trusted_uids and not others_may_write

    def is_writable(self) -> bool:
        """Whether this process's own user owns the cache, or may still create it.

        One that a newer release wrote is not written to.
        """
        path = self.root
        while not path.exists():
            if path == path.parent:
                return False
            path = path.parent
        owned = path != self.root or path.stat().st_uid == os.geteuid()
        may_write = owned and os.access(path, os.W_OK | os.X_OK)
        return may_write and newer_format(self) is None

    @contextlib.contextmanager
    def lock(self, name: str, *, seconds: float = LOCK_SECONDS) -> Iterator[bool]:
        """Hold a lock among processes that fetch without a daemon; yields whether it is held."""
        from filelock import FileLock

        with contextlib.ExitStack() as stack:
            try:
                path = make_directory(self.private / "locks") / f"{name}.lock"
                stack.enter_context(FileLock(path, timeout=seconds))
            except OSError:  # another process holds it too long, or this user may not make it
                yield False
                return
            yield True

    def discard(self, file: HashedFile) -> None:
        """Remove a file's name in staging; what was published keeps its own names."""
        if file.path.is_relative_to(self.staging):
            with self.stamps.keeping(file.digests.sha256, file.path):
                file.path.unlink(missing_ok=True)

    def set_aside(self, path: Path) -> Path | None:
        """Move the file at ``path`` to quarantine.

        Returns:
            Its path there; None if nothing is at ``path`` any more.
        """
        aside = make_directory(self.quarantine) / f"{path.name}-{staging_name()}"
        try:
            moved = move_away(path, aside)
        except FileNotFoundError:
            return None
        for directory in (moved.parent, path.parent):
            sync_directory(directory)
        return moved

    def _clear(self, path: Path) -> None:
        """Remove a file of ours; a directory that others put in its place goes to quarantine."""
        try:
            path.unlink(missing_ok=True)
        except IsADirectoryError:
            self.set_aside(path)

    def write_index(self, sha256: str, data: bytes) -> str:
        """Publish the index of the checkpoint with that sha256; returns its digest."""
        path = self.index_path(sha256)
        make_directory(path.parent)
        if path.is_dir():
            self._clear(path)
        write_file(path, data, staging=self.staging)
        digest = hashlib.sha256(data).hexdigest()
        self._vouched[sha256] = {digest}
        return digest

    def write_manifest(self, source: RemoteSource, manifest: Manifest) -> None:
        """Publish ``manifest``; from this moment on a load of ``source`` gets its files."""
        self.write_manifest_at(manifest_key(source), manifest)

    def write_manifest_at(self, key: str, manifest: Manifest) -> None:
        """Publish a manifest by its key: the source's name may hold a secret that is not known."""
        self._catalog.write(key, manifest)


def _trusted_uids() -> frozenset[int]:
    uids = {0, os.geteuid()}
    if (uid := daemon_uid()) is not None:
        uids.add(uid)
    return frozenset(uids)
