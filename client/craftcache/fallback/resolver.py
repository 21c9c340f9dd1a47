"""A worker on its own: what it does where no daemon can be had.

First what stands verified in a cache, then the origin. What it fetches it publishes as the daemon
would: in the shared cache where that belongs to the worker's own user, else in the user's own.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from craftcache.cache.directory import CacheDir
from craftcache.cache.hub_cache import LOCK_SECONDS
from craftcache.cache.manifest import manifest_key
from craftcache.cache.opened import FileInfo, OpenFile, OpenFiles
from craftcache.config import default_hub_cache
from craftcache.digests import Digest, Promise, hash_descriptor
from craftcache.errors import Unavailable
from craftcache.limits import limits_named
from craftcache.origins.hub import hub_endpoint
from craftcache.sources import HubSource, UrlSource, WatchSource

from .own_fetch import fetch_hub, fetch_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from craftcache.cache.hub_cache import HubTree
    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.daemon.transport import Cancellation
    from craftcache.sources import RemoteSource

    from .own_fetch import OwnFetch, Report

__all__ = ["Resolver"]


class Resolver:
    """Finds and fetches without a daemon; thread-safe, for it keeps no state.

    Args:
        cache: The shared cache directory.
        lock_seconds: How long a lock of another process is waited for.
    """

    def __init__(self, cache: CacheDir, *, lock_seconds: float = LOCK_SECONDS) -> None:
        own = CacheDir(default_hub_cache())
        self._caches = (cache,) if own.root == cache.root else (cache, own)
        self._lock_seconds = lock_seconds

    def has_cached(self, source: RemoteSource, names: Sequence[str]) -> bool:
        """Whether a verified copy of all ``names`` is in a cache (a few stats)."""
        return any(self._manifest(cache, source, names) for cache in self._caches)

    def cached(self, source: RemoteSource, names: Sequence[str]) -> OpenFiles | None:
        """Open the verified copy in a cache; None where there is none."""
        for cache in self._caches:
            manifest = self._manifest(cache, source, names)
            if manifest is not None and (files := _open_published(cache, source, manifest, names)):
                return OpenFiles(manifest.revision, "cache", files)
        return None

    def path(self, source: RemoteSource, filename: str) -> Path | None:
        """Where a copy stands, as huggingface_hub would name it; None if nowhere."""
        for cache in self._caches:
            manifest = self._manifest(cache, source, [filename])
            record = manifest.file(filename) if manifest else None
            if manifest is not None and record is not None:
                if isinstance(source, HubSource):
                    return cache.hub_tree(source.repo_id).pointer(manifest.revision, filename)
                return cache.path(record)
        return self._unverified_path(source, filename)

    def unverified(self, source: RemoteSource, names: Sequence[str]) -> OpenFiles | None:
        """What huggingface_hub itself left in a cache, hashed now; None where it is not whole.

        A blob's name there is its digest, so it can be verified without asking the Hub.
        """
        if not isinstance(source, HubSource):
            return None
        for tree, commit in self._snapshots(source):
            if files := _open_snapshot(tree, source, commit, names):
                return OpenFiles(commit, "cache", files)
        return None

    def fetch(
        self,
        source: RemoteSource,
        names: Sequence[str],
        *,
        token: str | None,
        is_private: bool,
        report: Report,
        cancellation: Cancellation,
    ) -> OwnFetch:
        """Fetch ``names`` from the origin at its newest revision, and publish them.

        Args:
            source: What to fetch from.
            names: Of the files.
            token: Sent to the Hub only; None sends none.
            is_private: Whether the daemon may not read it: then it is published in the user's own
                cache and not where everybody reads.
            report: Called with progress; what it raises ends the fetch.
            cancellation: Ends at once whatever the origin is waited for.

        Raises:
            CraftcacheError: Any of the tree but those of loading; nothing was published.
            Cancelled: So it was; nothing was published.
        """
        if isinstance(source, WatchSource):
            raise Unavailable(
                "only the daemon knows watches",
                source=source.shown,
                hint="Start craftcached, or name the directory",
            )
        with contextlib.ExitStack() as stack:
            stack.enter_context(limits_named(source.shown))
            cache = self._publishable(stack, is_private=is_private)
            if isinstance(source, UrlSource):
                fetch = partial(fetch_url, cache, source)
            else:
                fetch = partial(fetch_hub, cache, source, token=token)
            fetched = fetch(
                names, lock_seconds=self._lock_seconds, report=report, cancellation=cancellation
            )
        if cache not in self._caches:
            return replace(fetched, not_kept="this user may write to no cache")
        return fetched

    def _publishable(self, stack: contextlib.ExitStack, *, is_private: bool) -> CacheDir:
        """The cache to fetch into: the shared one if it is this user's, else the user's own.

        Where neither can be written to there is one that ends with ``stack``.
        """
        shared, own = self._caches[0], self._caches[-1]
        cache = shared if shared.is_writable() and not is_private else own
        with contextlib.suppress(OSError):
            cache.create()
        if os.access(cache.staging, os.W_OK | os.X_OK):
            return cache
        directory = tempfile.TemporaryDirectory(prefix="craftcache-")
        passing = CacheDir(Path(stack.enter_context(directory)))
        passing.create()
        return passing

    def _snapshots(self, source: HubSource) -> Iterator[tuple[HubTree, str]]:
        """What each cache has for the revision, by huggingface_hub's account."""
        for cache in self._caches:
            tree = cache.hub_tree(source.repo_id)
            commit = source.revision if source.is_pinned else tree.commit_of(source.revision)
            if commit:
                yield tree, commit

    def _unverified_path(self, source: RemoteSource, filename: str) -> Path | None:
        if not isinstance(source, HubSource):
            return None
        pointers = (tree.pointer(commit, filename) for tree, commit in self._snapshots(source))
        return next((pointer for pointer in pointers if pointer.exists()), None)

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
) -> dict[str, OpenFile] | None:
    """Open a manifest's files; hash those that somebody else may have touched."""
    is_trusted = cache.is_trusted(cache.manifest_path(manifest_key(source)))
    files: dict[str, OpenFile] = {}
    with contextlib.ExitStack() as opened:
        for name in names:
            record = manifest.file(name)
            descriptor = _open(cache.path(record)) if record else None
            if record is None or descriptor is None:
                return None
            opened.callback(os.close, descriptor)
            is_known = is_trusted and cache.is_trusted(cache.path(record))
            if not (is_known and record.describes(os.fstat(descriptor))) and (
                hash_descriptor(descriptor).sha256 != record.sha256
            ):
                return None
            index = _read_index(cache, record) if is_known else None
            files[name] = OpenFile(FileInfo.recorded(record), descriptor, index)
        opened.pop_all()
    return files


def _open_snapshot(
    tree: HubTree, source: HubSource, commit: str, names: Sequence[str]
) -> dict[str, OpenFile] | None:
    files: dict[str, OpenFile] = {}
    with contextlib.ExitStack() as opened:
        for name in names:
            etag = tree.etag_of(commit, name)
            digest = Digest.from_hub_etag(etag) if etag else None
            descriptor = _open(tree.blob(etag)) if etag else None
            if digest is None or descriptor is None:
                return None
            opened.callback(os.close, descriptor)
            digests = hash_descriptor(descriptor, git=digest.algorithm == "git-sha1")
            if not Promise(digest=digest).is_kept_by(digests):
                return None
            origin = f"{hub_endpoint()}/{source.repo_id}/resolve/{commit}/{name}"
            files[name] = OpenFile(FileInfo.of(name, digests, origin), descriptor)
        opened.pop_all()
    return files


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


def _read_index(cache: CacheDir, record: FileRecord) -> bytes | None:
    path = cache.index_path(record.sha256)
    if not cache.is_trusted(path):
        return None
    try:
        return path.read_bytes()
    except OSError:
        return None
