"""The daemon's hold on the cache directory: the only writer, asked through coroutines.

What exists is decided by the files alone; this class keeps in memory only what it can read again.
The states of a file and the meaning of each directory are described in craftcache.cache.directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

import aiofiles

from craftcache.cache.durable import link_file, staging_name
from craftcache.cache.manifest import manifest_key
from craftcache.cache.publish import (
    Verified,
    mark_asked_for,
    publish_generation,
    publish_hub,
    publish_url,
    serve_generation,
)
from craftcache.digests import Digest, Digests, HashedFile, Promise, hash_stamped
from craftcache.errors import StorageFull, Unavailable
from craftcached.threads import Threads

from .removal import Removed, remove, remove_unneeded, set_aside, sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import FileRecord, Manifest, Watched
    from craftcache.dependencies import Dependency
    from craftcache.digests import Stamp
    from craftcache.sources import HubSource, RemoteSource, UrlSource

__all__ = ["Store"]

LEFTOVER_SECONDS = 3600.0
"""Without a write to it, after which a file in staging that cannot be resumed is of no use."""


SMALL_FILES_BYTES = 1024 * 1024
"""Room that indexes, manifests and names of one model need at most, about."""

HASHING_THREADS = 4
"""For what takes seconds a file: it must not hold up the many small questions to the disk."""

P = ParamSpec("P")
T = TypeVar("T")


class Store:
    """Publishes, finds and removes what the cache directory holds.

    Use as an async context manager: entering makes the directories, takes the daemon's lock on
    the cache and clears what a killed predecessor left in staging under names of no use.

    Names are given and taken on one thread, one model after the other: a publication that is
    under way is finished before the next change, whoever asked for it and has gone since.

    Args:
        cache: The cache directory.

    Attributes:
        changed: Set when something was published or removed; its one reader clears it.
    """

    def __init__(self, cache: CacheDir) -> None:
        self.cache = cache
        self.changed = asyncio.Event()
        self._by_source: dict[str, tuple[tuple[int, int], Manifest]] = {}
        self._lock_fd = -1
        self._writing = Threads(1, "publish")
        self._hashing = Threads(HASHING_THREADS, "hash")

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.cache.create)
        await asyncio.to_thread(_clear_leftovers, self.cache.staging)
        self._lock_fd = _lock(self.cache)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._hashing.close()
        self._writing.close()
        os.close(self._lock_fd)

    def manifest(self, source: RemoteSource) -> Manifest | None:
        """The manifest of ``source`` as it stands now: one stat, and a read only if it changed.

        One that another user wrote says nothing: what it names is brought and verified anew.
        """
        path = self.cache.manifest_path(manifest_key(source))
        try:
            status = path.stat()
        except OSError:
            self._by_source.pop(path.stem, None)
            return None
        version = (status.st_ino, status.st_mtime_ns)
        known = self._by_source.get(path.stem)
        if known is not None and known[0] == version:
            return known[1]
        manifest = self.cache.manifest_at(path.stem, ours=True)
        if manifest is not None:
            self._by_source[path.stem] = (version, manifest)
        return manifest

    def intact(self, source: RemoteSource, filenames: Iterable[str]) -> Manifest | None:
        """The manifest of ``source`` if all ``filenames`` are in it, in place and untouched."""
        manifest = self.manifest(source)
        records = manifest.select(source, filenames) if manifest else None
        if records is None or not all(map(self.cache.is_intact, records)):
            return None
        return manifest

    def needed(self, need: Dependency) -> Manifest | None:
        """The manifest of a need if all that is needed of it is in place and untouched."""
        manifest = self.manifest(need.parsed)
        is_whole = manifest is not None and self.cache.meets(manifest, need)
        return manifest if is_whole else None

    def as_verified(self, record: FileRecord) -> Verified:
        """A published file as one that need not be fetched again."""
        digests = Digests(record.size, record.sha256)
        file = HashedFile(self.cache.path(record), digests, record.stamp)
        return Verified(file, record.etag, 0, record.size, record.verified_at)

    async def manifests(self) -> list[Manifest]:
        """All published manifests, by source."""
        found = await self.published()
        return [manifest for _, manifest in found]

    async def verify(self, record: FileRecord) -> Verified | None:
        """A published file, hashed again if it was touched since; None where it is not right."""
        return await self._hashing.run(self._verify, record)

    async def find(self, sha256: str, directory: Path) -> Verified | None:
        """A verified file with that digest, for whichever source it was published.

        It gets a name in ``directory``, which is the caller's, in staging: it stays even if the
        model that has it is removed meanwhile.
        """

        def search() -> Verified | None:
            for _, manifest in self.cache.published(ours=True):
                for record in manifest.files:
                    if record.sha256 == sha256 and (verified := self._verify(record)):
                        with contextlib.suppress(FileNotFoundError):  # removed just now
                            return _taken(verified, directory)
            return None

        return await self._hashing.run(search)

    async def adopt(self, source: HubSource, etag: str, promise: Promise) -> Verified | None:
        """A blob that somebody else put into the Hub's tree, hashed; None if none is right."""
        tree = self.cache.hub_tree(source.repo_id)
        adopted = await self._hashing.run(tree.adopt, etag, promise)
        return None if adopted is None else Verified(adopted, etag, 0, adopted.digests.size)

    async def adopt_snapshot(
        self, source: HubSource, commit: str, filenames: Iterable[str]
    ) -> dict[str, tuple[Verified, Promise]] | None:
        """The files of one commit in the Hub's tree, hashed; None if any is wrong or missing.

        A blob's name there is its digest, so nobody need be asked.
        """
        tree = self.cache.hub_tree(source.repo_id)
        files: dict[str, tuple[Verified, Promise]] = {}
        for filename in filenames:
            etag = tree.etag_of(commit, filename) or ""
            promise = Promise(digest=Digest.from_hub_etag(etag))
            verified = await self.adopt(source, etag, promise) if promise.digest else None
            if verified is None:
                return None
            files[filename] = verified, promise
        return files

    async def has_index(self, sha256: str) -> bool:
        """Whether the checkpoint with that digest was inspected before."""
        return await asyncio.to_thread(self.cache.index_path(sha256).is_file)

    async def read_index(self, sha256: str) -> bytes | None:
        """The index of the checkpoint with that digest; None where it was never inspected."""
        try:
            async with aiofiles.open(self.cache.index_path(sha256), "rb") as file:
                return await file.read()
        except FileNotFoundError:
            return None

    async def write_index(self, sha256: str, index: bytes) -> None:
        """Publish the index of a checkpoint; comes before the checkpoint itself."""
        await self._write(self.cache.write_index, sha256, index)

    async def published_elsewhere(
        self, source: HubSource, filenames: Iterable[str]
    ) -> Manifest | None:
        """An intact manifest of the same repository at the commit that ``source`` is pinned to."""
        names = tuple(filenames)

        def search() -> Manifest | None:
            for _, manifest in self.cache.published(ours=True):
                if manifest.source.partition("@")[0] != source.repo_id:
                    continue
                records = manifest.select(source, names)
                is_there = records is not None and all(map(self.cache.is_intact, records))
                if is_there and manifest.revision == source.revision:
                    return manifest
            return None

        return await asyncio.to_thread(search)

    async def publish_hub(
        self,
        source: HubSource,
        commit: str,
        files: Mapping[str, tuple[Verified, Promise]],
        origin: str,
        *,
        is_named: bool,
        as_need: bool = False,
    ) -> Manifest:
        """Publish files of one commit; see craftcache.cache.publish."""
        publish = partial(publish_hub, is_named=is_named, as_need=as_need)
        return await self._write(publish, self.cache, source, commit, files, origin)

    async def publish_url(
        self,
        source: UrlSource,
        files: Mapping[str, tuple[Verified, str]],
        *,
        as_need: bool = False,
    ) -> Manifest:
        """Publish files of a URL; see craftcache.cache.publish."""
        return await self._write(publish_url, self.cache, source, files, as_need=as_need)

    async def mark_asked_for(self, source: RemoteSource) -> None:
        """Let a model stay for its own sake; see craftcache.cache.publish."""
        await self._write(mark_asked_for, self.cache, source)

    async def manifest_at(self, key: str) -> Manifest | None:
        """The manifest with that key as it stands now."""
        return await asyncio.to_thread(self.cache.manifest_at, key, ours=True)

    async def publish_generation(
        self, name: str, watched: Watched, files: Mapping[str, Verified]
    ) -> Manifest:
        """Publish a state of a watched directory; see craftcache.cache.publish."""
        return await self._write(publish_generation, self.cache, name, watched, files)

    async def serve_generation(self, name: str, generation: Manifest) -> Manifest:
        """Make it the one that is served; see craftcache.cache.publish."""
        return await self._write(serve_generation, self.cache, name, generation)

    async def _write(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Let ``write`` change the cache directory; a cancelled caller waits for its end.

        Raises:
            StorageFull: There is no room for what it writes; these are small files, and names.
        """
        try:
            return await self._writing.run(write, *args, **kwargs)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageFull(
                "the cache's file system has no room left to publish in",
                missing_bytes=SMALL_FILES_BYTES,
                hint="Evict models, or give the cache more room",
            ) from error
        finally:
            self.changed.set()

    async def published(self) -> list[tuple[str, Manifest]]:
        """All published manifests of ours with their keys, by source."""
        found = await asyncio.to_thread(lambda: list(self.cache.published(ours=True)))
        return sorted(found, key=lambda item: item[1].source)

    async def remove(self, key: str, spared: Collection[str] = ()) -> Removed:
        """Remove a model and every blob that no other model and no other snapshot needs.

        Args:
            key: Of its manifest, which is enough where the source's name holds a secret.
            spared: Keys of models that stay, though they were here for its sake alone.
        """
        return await self._write(remove, self.cache, key, spared)

    async def remove_unneeded(self, removed: Manifest, spared: Collection[str]) -> Removed:
        """Remove what a model that is gone has left behind; see removal.remove_unneeded."""
        return await self._write(remove_unneeded, self.cache, removed, spared)

    async def set_aside(self, record: FileRecord, stamp: Stamp) -> Path | None:
        """Serve a published file no more; see removal.set_aside."""
        return await self._write(set_aside, self.cache, record, stamp)

    def _verify(self, record: FileRecord) -> Verified | None:
        if self.cache.is_intact(record):
            return self.as_verified(record)
        try:
            hashed = hash_stamped(self.cache.path(record))
        except OSError:
            return None
        if hashed.digests.sha256 != record.sha256:
            return None
        return Verified(hashed, record.etag, 0, hashed.digests.size)

    async def sweep(self, *, before: float) -> int:
        """Remove blobs that no model names; see removal.sweep."""
        return await self._writing.run(sweep, self.cache, before=before)

    async def discard(self, verified: Verified) -> None:
        """Remove a file's name in staging; what was published keeps its own names.

        In a thread, for with its last name go its bytes; a cancelled caller has it done as well.
        """
        if verified.path.is_relative_to(self.cache.staging):
            await asyncio.shield(asyncio.to_thread(verified.path.unlink, missing_ok=True))


def _taken(verified: Verified, directory: Path) -> Verified:
    """A published file under a name of our own in ``directory``."""
    name = directory / staging_name()
    link_file(verified.path, name)
    return replace(verified, file=replace(verified.file, path=name))


def _clear_leftovers(staging: Path) -> None:
    """Remove what a killed writer left, and nothing that a worker may be fetching by itself."""
    too_old = time.time() - LEFTOVER_SECONDS
    for path in staging.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mtime < too_old:
                path.unlink()


def _lock(cache: CacheDir) -> int:
    """Hold the cache for this daemon until the descriptor is closed."""
    path = cache.private / "daemon.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(descriptor, 64).decode("ascii", "replace").strip()
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise Unavailable(
            f"another craftcached (pid {owner or 'unknown'}) already serves {cache.root}",
            hint="Stop it first, or give this one another cache_dir",
            retryable=False,
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
