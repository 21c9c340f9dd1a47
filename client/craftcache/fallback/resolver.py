"""A worker's files without a daemon: verified copies in a cache, or fetched from the origin.

Fetched files are published as the daemon would:
in the shared cache if that belongs to the worker's own user, else in the user's own cache.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from craftcache.cache.cache_format import newer_format
from craftcache.cache.directory import CacheDir
from craftcache.cache.hub_cache import LOCK_SECONDS
from craftcache.cache.manifest import manifest_key
from craftcache.cache.opened import FileInfo, OpenFile
from craftcache.cache.recorded import contradicted, recorded
from craftcache.config import default_hub_cache
from craftcache.digests import Digest, Promise, hash_descriptor
from craftcache.limits import limits_named
from craftcache.logger import log
from craftcache.origins.hub import commit_origin, hub_endpoint
from craftcache.sources import HubSource, UrlSource, is_commit
from craftcache.wire import Loaded

from .own_fetch import fetch_hub, fetch_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from craftcache.cache.hub_cache import HubTree
    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.daemon.transport import Cancellation
    from craftcache.sources import RemoteSource, Selection

    from .own_fetch import OwnFetchRequest, OwnFetchResult, Report

__all__ = ["HubSnapshot", "Resolver"]


@dataclass(frozen=True, slots=True)
class HubSnapshot:
    """Files that huggingface_hub left, hashed.

    Attributes:
        loaded: The files.
        is_recorded: Whether it is recorded which bytes all of them are; if not, only links and
            refs of huggingface_hub say so.
    """

    loaded: Loaded
    is_recorded: bool


class Resolver:
    """Finds and fetches without a daemon; thread-safe, for it keeps no state.

    Args:
        cache: The shared cache directory.
        lock_seconds: Time to wait for a lock that another process holds.
    """

    def __init__(self, cache: CacheDir, *, lock_seconds: float = LOCK_SECONDS) -> None:
        own = CacheDir(default_hub_cache())
        self._caches = (cache,) if own.root == cache.root else (cache, own)
        self._lock_seconds = lock_seconds

    def known(self, source: RemoteSource, names: Sequence[str]) -> Manifest | None:
        """A readable manifest that has all ``names``, whose files exist; None without one.

        It takes a few stats: neither the bytes, nor the stamps, nor the owners are checked here.
        """
        found = self.located(source, names)
        return found and found[1]

    def located(
        self, source: RemoteSource, names: Sequence[str]
    ) -> tuple[CacheDir, Manifest] | None:
        """See known; with the cache that it is in."""
        for cache in self._caches:
            if manifest := self._manifest(cache, source, names):
                return cache, manifest
        return None

    def selected(self, source: RemoteSource, selection: Selection) -> Manifest | None:
        """See known; for all files of a selection."""
        for cache in self._caches:
            manifest = cache.manifest(source)
            if manifest is None or selection not in manifest.selections:
                continue
            names = tuple(file.filename for file in manifest.files if selection.has(file.filename))
            if self._manifest(cache, source, names) is not None:
                return manifest
        return None

    def cached(self, source: RemoteSource, names: Sequence[str]) -> Loaded | None:
        """Open a verified copy in a cache; None where there is none."""
        for cache in self._caches:
            manifest = self._manifest(cache, source, names)
            if manifest is not None and (files := _open_published(cache, source, manifest, names)):
                return Loaded(source.shown, manifest.revision, files, "cache")
        return None

    def path(self, source: RemoteSource, filename: str) -> Path | None:
        """Path of a copy, as huggingface_hub would name it; None if there is none."""
        for cache in self._caches:
            manifest = self._manifest(cache, source, [filename])
            record = manifest.file(filename) if manifest else None
            if manifest is not None and record is not None:
                blob = cache.path(record)
                if isinstance(source, HubSource):
                    pointer = cache.hub_tree(source.repo_id).pointer(manifest.revision, filename)
                    return pointer if _is_same_file(pointer, blob) else blob
                return blob
        return self._snapshot_path(source, filename)

    def hub_snapshot(self, source: RemoteSource, names: Sequence[str]) -> HubSnapshot | None:
        """A copy that huggingface_hub itself made, hashed now; None if it is incomplete or wrong.

        A blob's name there is its digest, so its bytes can be verified without asking the Hub. But
        only a link says which file the blob is, and only a ref says which revision that is, and
        other programs may change both. So the files must have the sha256s that are recorded of
        that commit, under whichever name. Where nothing is recorded, links and refs are believed
        as huggingface_hub believes them.
        """
        if not isinstance(source, HubSource):
            return None
        for cache, commit in self._snapshots(source):
            tree = cache.hub_tree(source.repo_id)
            if files := _open_snapshot(tree, source, commit, names):
                loaded = Loaded(source.shown, commit, files, "cache")
                if not self._is_contradicted(cache, source, loaded):
                    return HubSnapshot(loaded, self._is_recorded(source, commit, names))
                log.warning("%s: huggingface_hub's links lead to other files", source.shown)
                loaded.close()
        return None

    def _is_contradicted(self, own: CacheDir, source: HubSource, loaded: Loaded) -> bool:
        """Whether a cache records other bytes of a file of that commit.

        Of another cache than the files' own only what no untrusted user can have written counts.
        """
        found = {file.info.filename: file.info.sha256 or "" for file in loaded.files}
        return any(
            contradicted(cache, source.repo_id, loaded.revision, found, ours=cache is not own)
            for cache in self._caches
        )

    def _is_recorded(self, source: HubSource, commit: str, names: Sequence[str]) -> bool:
        """Whether something that no untrusted user can have written vouches for all files."""
        known: set[str] = set()
        for cache in self._caches:
            known |= recorded(cache, source.repo_id, commit, ours=True).keys()
        return known.issuperset(names)

    def fetch(
        self,
        source: HubSource | UrlSource,
        what: OwnFetchRequest,
        *,
        token: str | None,
        is_private: bool,
        report: Report,
        cancellation: Cancellation,
    ) -> OwnFetchResult:
        """Fetch files from the origin, at its newest or at a locked revision, and publish them.

        Args:
            source: The source that is fetched.
            what: Which files of it.
            token: Access token, sent to the Hub only; None sends none.
            is_private: Whether the daemon's token may not read the source: then it is published in
                the user's own cache, and not in the one that everybody reads.
            report: Called with progress; what it raises ends the fetch.
            cancellation: Cancels the fetch at once, also while it waits for the origin.

        Raises:
            CraftcacheError: Any of the tree but those of loading; nothing was published.
            Cancelled: The fetch was cancelled; nothing was published.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(limits_named(source.shown))
            cache = self._publishable(stack, is_private=is_private)
            if isinstance(source, UrlSource):
                fetch = partial(fetch_url, cache, source)
            else:
                fetch = partial(fetch_hub, cache, source, token=token)
            fetched = fetch(
                what, lock_seconds=self._lock_seconds, report=report, cancellation=cancellation
            )
        if cache not in self._caches:
            places = " nor to ".join(str(each.root) for each in self._caches)
            return replace(fetched, not_kept=f"this user may not write to {places}")
        return replace(fetched, kept_in=cache.root if fetched.not_kept is None else None)

    @property
    def places(self) -> tuple[Path, ...]:
        """The cache directories that are looked in: the shared one, and the user's own."""
        return tuple(cache.root for cache in self._caches)

    @property
    def destination(self) -> Path:
        """The cache directory that a fetch would publish in, where it can be made and written."""
        return self._destination(is_private=False).root

    def _destination(self, *, is_private: bool) -> CacheDir:
        shared, own = self._caches[0], self._caches[-1]
        return shared if shared.is_writable() and not is_private else own

    def _publishable(self, stack: contextlib.ExitStack, *, is_private: bool) -> CacheDir:
        """The cache to fetch into: the shared one if it is this user's, else the user's own.

        Where neither can be written to, it is a temporary one that ``stack`` removes.
        """
        cache = self._destination(is_private=is_private)
        if (newer := newer_format(cache)) is not None:
            log.warning("nothing is kept in %s, which a newer release wrote: %s", cache.root, newer)
        else:
            with contextlib.suppress(OSError):
                cache.create()
            if os.access(cache.staging, os.W_OK | os.X_OK):
                return cache
        directory = tempfile.TemporaryDirectory(prefix="craftcache-")
        passing = CacheDir(Path(stack.enter_context(directory)))
        passing.create()
        return passing

    def _snapshots(self, source: HubSource) -> Iterator[tuple[CacheDir, str]]:
        """Each cache that has the revision by huggingface_hub's refs, and its commit.

        A cache with a manifest of the source is left out if its ref names another commit than that.
        """
        for cache in self._caches:
            tree = cache.hub_tree(source.repo_id)
            commit = source.revision if source.is_pinned else tree.commit_of(source.revision)
            manifest = cache.manifest(source)
            if commit is None or not is_commit(commit):  # another spelling has no records
                continue
            if manifest is None or manifest.revision == commit:
                yield cache, commit

    def _snapshot_path(self, source: RemoteSource, filename: str) -> Path | None:
        if not isinstance(source, HubSource):
            return None
        for cache, commit in self._snapshots(source):
            tree = cache.hub_tree(source.repo_id)
            pointer, etag = tree.pointer(commit, filename), tree.etag_of(commit, filename)
            if etag is not None and _is_same_file(pointer, tree.blob(etag)):
                return pointer
        return None

    def _manifest(
        self, cache: CacheDir, source: RemoteSource, names: Sequence[str]
    ) -> Manifest | None:
        manifest = cache.manifest(source)
        records = manifest.select(source, names) if manifest else None
        if records is None or not all(cache.path(record).exists() for record in records):
            return None
        return manifest


def _open_published(
    cache: CacheDir, source: RemoteSource, manifest: Manifest, names: Sequence[str]
) -> tuple[OpenFile, ...] | None:
    """Open a manifest's files; hash those that other users may have written to."""
    is_trusted = cache.is_trusted(cache.manifest_path(manifest_key(source)))
    files: list[OpenFile] = []
    for name in names:
        record = manifest.file(name)
        descriptor = _open(cache.path(record)) if record else None
        if record is None or descriptor is None:
            return None
        files.append(file := OpenFile(FileInfo.recorded(record), descriptor))
        is_known = is_trusted and cache.is_trusted(cache.path(record))
        if not _is_right(cache, record, descriptor, is_known=is_known):
            log.warning("%s does not hold what was verified", cache.path(record))
            return None
        file.index_content = _read_index(cache, record) if is_known else None
    return tuple(files)


def _open_snapshot(
    tree: HubTree, source: HubSource, commit: str, names: Sequence[str]
) -> tuple[OpenFile, ...] | None:
    files: list[OpenFile] = []
    for name in names:
        etag = tree.etag_of(commit, name)
        digest = Digest.from_hub_etag(etag) if etag else None
        descriptor = _open(tree.blob(etag)) if etag else None
        if digest is None or descriptor is None:
            return None
        origin = f"{commit_origin(hub_endpoint(), source, commit)}/{name}"
        file = OpenFile(FileInfo(name, os.fstat(descriptor).st_size, origin), descriptor)
        digests = hash_descriptor(descriptor, git=digest.algorithm == "git-sha1")
        if not Promise(digest=digest).is_kept_by(digests):
            return None
        file.info = FileInfo.of(name, digests, origin)
        files.append(file)
    return tuple(files)


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _open(path: Path) -> int | None:
    """A descriptor of a regular file; None of anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _is_right(cache: CacheDir, record: FileRecord, descriptor: int, *, is_known: bool) -> bool:
    """Whether an open file has the bytes of its record: by its stamp, else by hash.

    The stamp of a hashed file is kept for later loads, where only trusted users can write to the
    file and this process may write to the cache.
    """
    stamps, status = cache.stamps, os.fstat(descriptor)
    if is_known and stamps.has(record.sha256, status, is_trusted=cache.is_trusted):
        return True
    hashed = stamps.hash_descriptor(descriptor, is_lasting=is_known)
    return hashed == record.sha256


def _read_index(cache: CacheDir, record: FileRecord) -> bytes | None:
    """A file's index if its digest is the manifest's; None otherwise, then torch loads the file."""
    index = cache.read_index(record)
    if index is None and record.index_sha256 is not None:
        log.warning("%s is loaded without its index, which is damaged", cache.path(record))
    return index
