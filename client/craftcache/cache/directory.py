"""The cache directory: where everything in it stands, what may be believed, how it is published.

    <cache directory>/
      models--org--name/, .locks/   huggingface_hub's own, see hub_cache
      .craftcache/
        staging/                    what is not verified yet; never a final name
        blobs/sha256/<hex>          verified files that came from a URL or a watch
        index/<hex>.json            the index of the checkpoint with that sha256
        manifests/<key>.json        which files a source consists of
        torch/hub/checkpoints/      links to URL files whose name carries their hash, for torch.hub
        quarantine/                 what failed verification later, never served

A file lives through four states: *staged* (partial or unverified, in ``staging/``), *verified*
(hashed and inspected, still in ``staging/``), *published* (linked to its final name and named by
a manifest) and *evicted* (unlinked; whoever has it open keeps its bytes). All calls here block.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from craftcache.checkpoint.index import InvalidIndex
from craftcache.checkpoint.index import parse as parse_index
from craftcache.config import daemon_uid
from craftcache.sources import url_digest

from .durable import link_file, make_directory, staging_name, sync_directory, write_file
from .hub_cache import LOCK_SECONDS, HubTree
from .manifest import MAX_BYTES, Manifest, ManifestError, manifest_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from craftcache.checkpoint.index import Index
    from craftcache.dependencies import Dependency
    from craftcache.digests import HashedFile
    from craftcache.sources import RemoteSource

    from .manifest import FileRecord

__all__ = ["CacheDir"]

BLOB_MODE = 0o444

NAME_MAX = 255
"""Bytes of a file's name on every file system that counts."""


@dataclass(frozen=True, slots=True)
class CacheDir:
    """One cache directory, existing or not.

    Attributes:
        root: Absolute path.
        trusted_uids: Owners whose files are believed without hashing them again.
    """

    root: Path
    trusted_uids: frozenset[int] = field(default_factory=lambda: _trusted_uids())
    # Joined once and not for every hit, which they would make a third slower.
    _blobs: Path = field(init=False, repr=False, compare=False)
    _indexes: Path = field(init=False, repr=False, compare=False)
    _manifests: Path = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_blobs", self.private / "blobs" / "sha256")
        object.__setattr__(self, "_indexes", self.private / "index")
        object.__setattr__(self, "_manifests", self.private / "manifests")

    @property
    def private(self) -> Path:
        """The directory of everything that is not huggingface_hub's."""
        return self.root / ".craftcache"

    @property
    def staging(self) -> Path:
        """Where files are written before they have a final name; on the same file system."""
        return self.private / "staging"

    @property
    def _torch_checkpoints(self) -> Path:
        return self.torch_home / "hub" / "checkpoints"

    @property
    def torch_home(self) -> Path:
        """What unmodified programs are given as ``TORCH_HOME``."""
        return self.private / "torch"

    @property
    def quarantine(self) -> Path:
        """Where files go that turned out wrong."""
        return self.private / "quarantine"

    def create(self) -> None:
        """Make the directories that writing needs.

        Raises:
            OSError: They cannot be made.
        """
        for directory in (
            *(self.staging, self._blobs, self._indexes, self._manifests),
            self._torch_checkpoints,
        ):
            make_directory(directory)

    def hub_tree(self, repo_id: str) -> HubTree:
        """The part that belongs to one Hub repository."""
        return HubTree(self.root, repo_id, self.staging, self.quarantine, self.is_ours)

    def path(self, record: FileRecord) -> Path:
        """Where the bytes of ``record`` stand."""
        return self.root / record.path

    def relative(self, path: Path) -> str:
        """``path`` as a FileRecord gives it."""
        return path.relative_to(self.root).as_posix()

    def url_blob(self, sha256: str) -> Path:
        """Where the bytes of a URL's or a watch's file stand."""
        return self._blobs / sha256

    def url_blobs(self) -> Iterator[Path]:
        """Every file that stands where url_blob says, named by a manifest or not."""
        return self._blobs.glob("*")

    def index_path(self, sha256: str) -> Path:
        """Where the index of the checkpoint with that sha256 stands."""
        return self._indexes / f"{sha256}.json"

    def indexes(self) -> Iterator[Path]:
        """Every file that stands where index_path says, of a published checkpoint or not."""
        return self._indexes.glob("*.json")

    def index(self, record: FileRecord) -> Index | None:
        """The index of a published file; None where it was not inspected."""
        try:
            return parse_index(self.index_path(record.sha256).read_bytes(), file_size=record.size)
        except (OSError, InvalidIndex):
            return None

    def manifest_path(self, key: str) -> Path:
        """Where the manifest with that key (see manifest.manifest_key) stands."""
        return self._manifests / f"{key}.json"

    def manifest(self, source: RemoteSource) -> Manifest | None:
        """The published manifest of ``source``; None where there is none that can be read."""
        return self.manifest_at(manifest_key(source))

    def manifest_at(self, key: str, *, ours: bool = False) -> Manifest | None:
        """The published manifest with that key; None where there is none that can be read.

        Args:
            key: See manifest.manifest_key.
            ours: Whether one that somebody else can have written is none.
        """
        try:
            with self.manifest_path(key).open("rb") as file:
                if ours and not self.is_ours(os.fstat(file.fileno())):
                    return None
                return Manifest.parse(file.read(MAX_BYTES))
        except (OSError, ManifestError):
            return None

    def manifests(self) -> Iterator[Manifest]:
        """All published manifests, in no order."""
        return (manifest for _, manifest in self.published())

    def published(self, *, ours: bool = False) -> Iterator[tuple[str, Manifest]]:
        """All published manifests with their keys, in no order; see manifest_at for ``ours``."""
        for key in self.manifest_keys():
            if manifest := self.manifest_at(key, ours=ours):
                yield key, manifest

    def manifest_keys(self) -> list[str]:
        """The keys of all manifests, of those too that this release cannot read."""
        return [path.stem for path in self._manifests.glob("*.json")]

    def is_intact(self, record: FileRecord) -> bool:
        """Whether the blob is there and untouched since it was verified (one stat)."""
        try:
            return record.describes(self.path(record).stat())
        except OSError:
            return False

    def is_ready(self, record: FileRecord) -> bool:
        """Whether the blob is intact and was inspected."""
        return self.is_intact(record) and self.index_path(record.sha256).is_file()

    def has_need(self, need: Dependency) -> bool:
        """Whether all that is needed of a source is published and untouched."""
        manifest = self.manifest(need.parsed)
        return manifest is not None and self.meets(manifest, need)

    def meets(self, manifest: Manifest, need: Dependency) -> bool:
        """Whether a published model is, untouched, all that is needed of it."""
        names = [record.filename for record in manifest.files if self.is_intact(record)]
        return len(names) == len(manifest.files) and need.is_met_by(names)

    def is_trusted(self, path: Path) -> bool:
        """Whether nobody but a trusted owner can have written ``path``.

        True where it and its parents up to the cache directory, links resolved, belong to root,
        the daemon's configured user or this process's, and are writable by nobody else.
        """
        try:
            resolved = path.resolve(strict=True)
            root = self.root.resolve(strict=True)
            if not resolved.is_relative_to(root):
                return False
            steps = (resolved, *(p for p in resolved.parents if p.is_relative_to(root)))
            return all(self.is_ours(os.lstat(step)) for step in steps)
        except OSError:
            return False

    def is_ours(self, status: os.stat_result) -> bool:
        """Whether a file with this stat can have been written by a trusted owner only."""
        others_may_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return status.st_uid in self.trusted_uids and not others_may_write

    def is_writable(self) -> bool:
        """Whether this process's own user owns the cache, or may still create it."""
        path = self.root
        while not path.exists():
            if path == path.parent:
                return False
            path = path.parent
        owned = path != self.root or path.stat().st_uid == os.geteuid()
        return owned and os.access(path, os.W_OK | os.X_OK)

    @contextlib.contextmanager
    def lock(self, name: str, *, seconds: float = LOCK_SECONDS) -> Iterator[bool]:
        """Hold a lock among processes that fetch without a daemon; yields whether it is held."""
        from filelock import FileLock

        with contextlib.ExitStack() as stack:
            try:
                path = make_directory(self.private / "locks") / f"{name}.lock"
                stack.enter_context(FileLock(path, timeout=seconds))
            except OSError:  # held for too long by somebody else, or not ours to make
                yield False
                return
            yield True

    def publish_url_blob(self, file: HashedFile) -> HashedFile:
        """Give a verified file its final name; the caller still removes its own name for it.

        Raises:
            IntegrityError: The file was changed after it was verified.
        """
        verified, final = file.path, self.url_blob(file.digests.sha256)
        published = replace(file, path=final)
        file.check_untouched()
        if final.exists() and final.samefile(verified):
            return published
        make_directory(final.parent)
        if verified.is_relative_to(self.staging) and verified.stat().st_nlink == 1:
            os.chmod(verified, BLOB_MODE)
        staged = self.staging / staging_name()
        link_file(verified, staged)
        os.replace(staged, final)  # same digest, same bytes: whichever stands here is right
        sync_directory(final.parent)
        return published

    def link_torch_checkpoint(self, url: str, blob: Path) -> None:
        """Let torch.hub find a published file that came from ``url``, if its name carries its hash.

        Under any other name it would find whatever came last from anywhere.
        """
        digest, name = url_digest(url), urlsplit(url).path.rpartition("/")[2]
        is_its_hash = digest is not None and blob.name.startswith(digest.hex)
        if not is_its_hash or len(name.encode()) > NAME_MAX:
            return
        link = self._torch_checkpoints / name
        make_directory(link.parent)
        staged = self.staging / staging_name()
        os.symlink(os.path.relpath(blob, link.parent), staged)
        os.replace(staged, link)  # of two files with such a name, the one that was published last
        sync_directory(link.parent)

    def sweep_torch_checkpoints(self) -> None:
        """Remove the links whose file is gone."""
        for link in self._torch_checkpoints.glob("*"):
            if not link.exists():
                link.unlink(missing_ok=True)

    def write_index(self, sha256: str, data: bytes) -> None:
        """Publish the index of the checkpoint with that sha256."""
        path = self.index_path(sha256)
        make_directory(path.parent)
        write_file(path, data, staging=self.staging)

    def write_manifest(self, source: RemoteSource, manifest: Manifest) -> None:
        """Publish ``manifest``: the moment from which ``source`` is what it says."""
        path = self.manifest_path(manifest_key(source))
        make_directory(path.parent)
        write_file(path, manifest.dump(), staging=self.staging)


def _trusted_uids() -> frozenset[int]:
    uids = {0, os.geteuid()}
    if (uid := daemon_uid()) is not None:
        uids.add(uid)
    return frozenset(uids)
