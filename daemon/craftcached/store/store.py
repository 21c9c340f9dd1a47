"""The store: coroutines that find, publish and remove models; the cache directory's only writer.

What exists is decided by the files alone; this class keeps in memory only what it can read again.
The states of a file and the meaning of each directory are described in craftcache.cache.directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import threading
import time
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from craftcache.cache.cache_format import check_format, record_format
from craftcache.cache.durable import staging_name
from craftcache.cache.manifest import manifest_key
from craftcache.cache.placing import TreeObstacle, copy_to, link_or_copy
from craftcache.cache.publish import (
    Verified,
    mark_asked_for,
    publish_generation,
    publish_hub,
    publish_url,
    record_index,
    serve_generation,
    take_over,
)
from craftcache.cache.signed_urls import same_file
from craftcache.cache.stamps import FileStamp
from craftcache.cache.underway import underway
from craftcache.checkpoint.index import InvalidIndex
from craftcache.checkpoint.index import parse as parse_index
from craftcache.digests import Digest, Digests, HashedFile, Promise, Stamp
from craftcache.errors import CraftcacheError, Unavailable
from craftcache.full_disk import FULL, storage_full
from craftcache.sources import NO_SELECTION
from craftcached.events import Events
from craftcached.in_use import is_in_use
from craftcached.singleflight import SingleFlight
from craftcached.threads import Threads

from .indexes import Indexes
from .links import is_led_astray, mend_links
from .removal import (
    Removed,
    remove,
    remove_underway,
    remove_unneeded,
    renew_index,
    set_aside,
    sweep,
)
from .turns import Turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import FileRecord, Manifest, Watched
    from craftcache.dependencies import Dependency
    from craftcache.sources import HubSource, RemoteSource, Selection, UrlSource

__all__ = ["Store"]

log = logging.getLogger("craftcached")

LEFTOVER_SECONDS = 3600.0
"""Age of its last write after which a file in staging that cannot be resumed is removed."""


SMALL_FILES_BYTES = 1024 * 1024
"""Disk space that the indexes, manifest and links of one model need at most, about."""

WRITING_THREADS = 8
"""Threads for publications and other changes of names, which wait for the disk to sync."""

HASHING_THREADS = 4
"""Threads for hashing, which takes seconds a file and must not hold up short disk accesses."""

LOOKED_AT_ONCE = 32
"""Models that one thread looks at before others have their turn: some milliseconds."""

LOOK_PAUSE_SECONDS = 0.02
"""Pause before each such look, so that requests after a start hardly notice them."""

P = ParamSpec("P")
T = TypeVar("T")


class Store:
    """Publishes, finds and removes what the cache directory holds.

    Use as an async context manager: entering refuses a cache that a newer release wrote, makes the
    directories, takes the daemon's lock on the cache and clears what a killed predecessor left in
    staging under names of no use.

    Models of different sources are published beside one another, see Turns; what removes names, or
    changes manifests of other sources, has the cache for itself. A publication that is under way
    is finished before the next change, even if its request has been cancelled since. The order of
    turns after other locks is stated in FileAcquirer.

    Args:
        cache: The cache directory.
        events: Told of models that are published, and of files that were set aside as wrong.

    Attributes:
        changed: Set when something was published or removed; its one reader clears it.
        kept_keys: Returns the keys of the models that stay, by a person's word, though no model
            depends on them any more; asked on the event loop before each removal.
        indexes: The checked indexes, sealed in memory.
    """

    def __init__(self, cache: CacheDir, events: Events | None = None) -> None:
        self.cache = cache
        self.changed = asyncio.Event()
        self.indexes = Indexes()
        self.kept_keys: Callable[[], Collection[str]] = frozenset
        self._events = events or Events()
        self._hashes: SingleFlight[Verified | Stamp | None, None] = SingleFlight()
        self._lock_fd = -1
        self._device = -1
        # Guards _lock_fd while heal replaces it. Fetches and publications heal on different
        # threads: without the lock, one would take the other's new hold on the cache for that of
        # another daemon. No other lock is taken inside.
        self._healing = threading.Lock()
        self._turns = Turns()
        self._writing = Threads(WRITING_THREADS, "publish")
        self._hashing = Threads(HASHING_THREADS, "hash")

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(check_format, self.cache)
        await asyncio.to_thread(self.cache.create)
        predecessor = await asyncio.to_thread(_last_owner, self.cache)
        self._lock_fd = _lock(self.cache)
        await asyncio.to_thread(_clear_leftovers, self.cache.staging, predecessor)
        await asyncio.to_thread(record_format, self.cache)
        self._device = (await asyncio.to_thread(self.cache.root.stat)).st_dev
        return self

    async def __aexit__(self, *_: object) -> None:
        self._hashing.close()
        self._writing.close()
        self.indexes.close()
        os.close(self._lock_fd)

    async def heal(self) -> None:
        """Make removed directories of the cache anew, and take the daemon's lock on it again.

        Raises:
            CraftcacheError: They cannot be made, or the file system that held them is not mounted
                any more. A bare one, as that is the daemon's own fault, or Unavailable.
        """
        await self.healed(lambda: None)

    async def healed(self, look: Callable[[], T]) -> T:
        """Call ``look`` in a thread, once the cache is healed; see heal."""

        def heal_and_look() -> T:
            self._heal_or_say()
            return look()

        return await asyncio.to_thread(heal_and_look)

    def _heal_or_say(self) -> None:
        try:
            self._heal()
        except OSError as error:
            raise CraftcacheError(
                f"the cache directory cannot be used: {error}",
                hint="craftcache doctor says what is wrong on this node",
            ) from error

    def is_gone(self) -> bool:
        """Whether directories of the cache were removed, or another directory is in its place."""
        return not (_is_lock(self.cache, self._lock_fd) and self.cache.is_made())

    def is_obstructed(self) -> bool:
        """Whether something may keep the next fetch from writing to the cache."""
        may_write = (os.access(path, os.W_OK | os.X_OK) for path in self.cache.directories)
        return self.is_gone() or not all(may_write)

    async def check_healable(self) -> None:
        """Check that removed directories can be made anew once something is to be written.

        They are not made before that: an administrator may be about to remove the rest.

        Raises:
            OSError: They cannot be made.
        """
        await asyncio.to_thread(self._check_healable)

    def _check_healable(self) -> None:
        root = self.cache.root
        if root.is_dir() and root.stat().st_dev != self._device:
            raise OSError(errno.ENODEV, "another file system is mounted there now", str(root))
        for directory in (root, *self.cache.directories):
            places = (directory, *directory.parents)
            nearest = next(path for path in places if os.path.lexists(path))
            if not nearest.is_dir():
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
            if not os.access(nearest, os.W_OK | os.X_OK):
                is_read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
                reason = errno.EROFS if is_read_only else errno.EACCES
                raise OSError(reason, os.strerror(reason), str(nearest))

    def _heal(self) -> None:
        root = self.cache.root
        with self._healing:
            if not self.is_gone():
                return
            self._check_healable()
            self.cache.create()
            if not _is_lock(self.cache, self._lock_fd):
                log.warning("%s was emptied under the daemon; its directories are made anew", root)
                lost, self._lock_fd = self._lock_fd, _lock(self.cache)
                os.close(lost)

    def manifest(self, source: RemoteSource) -> Manifest | None:
        """The current manifest of ``source``: one stat, and a read only if it changed.

        A manifest that another user owns counts as none, so its files are fetched and verified
        anew. A manifest of ours may be writable for others: see trusted, believed
        and recheck.
        """
        return self._manifest(source)[0]

    def trusted(self, source: RemoteSource) -> Manifest | None:
        """The manifest of ``source`` if only trusted users can have written it."""
        manifest, is_ours = self._manifest(source)
        return manifest if is_ours else None

    def _manifest(self, source: RemoteSource) -> tuple[Manifest | None, bool]:
        found = self.cache.find_manifest(manifest_key(source))
        if found is None or found[1].st_uid not in self.cache.trusted_uids:
            return None, False
        manifest, status = found
        return manifest, self.cache.is_ours(status)

    def intact(self, source: RemoteSource, filenames: Iterable[str]) -> Manifest | None:
        """The manifest of ``source`` if all ``filenames`` are in it, in place and untouched."""
        manifest = self.trusted(source)
        records = manifest.select(source, filenames) if manifest else None
        if records is None or not all(map(self.cache.is_intact, records)):
            return None
        return manifest

    def needed(self, need: Dependency) -> Manifest | None:
        """The manifest of a dependency if all needed files of it are in place and untouched."""
        manifest = self.trusted(need.parsed)
        is_whole = manifest is not None and self.cache.meets(manifest, need)
        return manifest if is_whole else None

    def as_verified(self, record: FileRecord) -> Verified:
        """A published, intact file as a verified one, with no bytes fetched."""
        digests, path = Digests(record.size, record.sha256), self.cache.path(record)
        try:
            stamp = Stamp.of(path.stat())
        except FileNotFoundError:  # removed just now
            stamp = record.stamp
        file = HashedFile(path, digests, stamp)
        return Verified(file, record.etag, 0, record.size, record.verified_at)

    async def manifests(self) -> list[Manifest]:
        """All published manifests, by source."""
        found = await self.published()
        return [manifest for _, manifest in found]

    async def verify(self, record: FileRecord, *, anew: bool = False) -> Verified | None:
        """A published file, hashed again if it was touched; None where it is missing or wrong.

        A file whose hash is wrong goes to quarantine.

        Args:
            record: Record of the file.
            anew: Whether it is hashed in any case.
        """
        if not anew and self.cache.is_intact(record):
            return self.as_verified(record)

        async def work(_: object) -> Verified | Stamp | None:
            return await self._hashing.run(self._verify, record, anew=anew)

        key = (record.path, record.sha256, anew)
        async with self._hashes.join(key, work, lambda _: None) as found:
            if isinstance(found, Stamp):
                await self.quarantine_wrong(record, found)
                return None
            return found

    async def recheck(self, source: RemoteSource, filenames: Iterable[str]) -> Manifest | None:
        """Like intact, but files that do not match their stamp are hashed again.

        A manifest that others may write to is used once all its files have been hashed and the
        manifest was written anew. Nothing is fetched.
        """
        names = tuple(filenames)
        if (manifest := self.intact(source, names)) is not None:
            return manifest
        manifest = await self.believed(source)
        for record in (manifest.select(source, names) if manifest else None) or ():
            if not await self.verify(record):
                log.warning("%s: %s is not what was verified", source.shown, record.path)
        return self.intact(source, names)

    async def believed(self, source: RemoteSource) -> Manifest | None:
        """The manifest of ``source`` as something that more may be built on.

        One that others may write to is verified first: all files that it names are hashed, and it
        is written anew. None if that fails.
        """
        manifest, is_ours = self._manifest(source)
        if manifest is None or is_ours:
            return manifest
        is_right = await self._take_over(manifest_key(source), manifest)
        return self.trusted(source) if is_right else None

    async def recheck_all(self) -> None:
        """Recheck all published models now, so that later loads do not wait for hashing."""
        async for batch in self.batches():
            for key, manifest in await self._hashing.run(self._touched, batch):
                ours = await self.manifest_at(key)
                if ours is None:
                    await self._take_over(key, manifest)
                    continue
                for record in ours.files:
                    await self.verify(record)

    async def batches(self) -> AsyncIterator[list[tuple[str, Manifest]]]:
        """All published models a few at a time, with pauses: for who looks at thousands."""
        published = await self.published()
        for start in range(0, len(published), LOOKED_AT_ONCE):
            await asyncio.sleep(LOOK_PAUSE_SECONDS)
            yield published[start : start + LOOKED_AT_ONCE]

    def _touched(self, published: Iterable[tuple[str, Manifest]]) -> list[tuple[str, Manifest]]:
        """Those of these models that must be looked at again before they are served."""
        touched = []
        for key, manifest in published:
            if self.cache.manifest_at(key, owned=True) is None:
                continue  # removed meanwhile
            is_ours = self.cache.manifest_at(key, ours=True) is not None
            if not is_ours or not all(map(self.cache.is_intact, manifest.files)):
                touched.append((key, manifest))
        return touched

    async def _take_over(self, key: str, manifest: Manifest) -> bool:
        """Hash all files of a manifest that others may write to; if all are right, make it ours."""
        log.warning("others may write to the manifest of %s: it is hashed again", manifest.source)
        for record in manifest.files:
            if not await self.verify(record, anew=True):
                return False
        await self._write(take_over, self.cache, key, manifest)
        return True

    async def quarantine_wrong(self, record: FileRecord, stamp: Stamp) -> str | None:
        """Move a file with wrong content to quarantine, and tell of it.

        Returns:
            Its place there, as shown to people; None if another file is in its place by now, or if
            it is in a cache that another daemon owns, where nothing is changed.
        """
        if self.cache.is_owners(record):
            log.error("%s does not hold what its owner's manifest says", record.path)
            return None
        quarantined = await self.set_aside(record, stamp)
        if quarantined is None:
            return None
        shown = self.cache.shown(quarantined)
        log.error("%s does not hold what was verified; it is %s now", record.path, shown)
        self._events.tell("quarantined", path=record.path, sha256=record.sha256, now=shown)
        return shown

    async def record_stamp(self, sha256: str, stamp: FileStamp) -> None:
        """Record that a file with this stamp was found to have that digest."""
        await self._hashing.run(self.cache.stamps.record, sha256, stamp)

    async def forget_stamps(self, sha256: str) -> None:
        """Have files of that digest hashed again before they are served."""
        await self._hashing.run(self.cache.stamps.forget, sha256)

    async def is_index_right(self, record: FileRecord) -> bool:
        """Whether the index of a published file is there and has the digest of its record."""
        return await asyncio.to_thread(self.cache.read_index, record) is not None

    async def mend_links(self, key: str, manifest: Manifest) -> list[FileRecord]:
        """Put right what leads unmodified programs to a model's files; see links.mend_links.

        Of a model in another daemon's cache that is the owner's to do.
        """
        if any(map(self.cache.is_owners, manifest.files)):
            return []
        return await self._write(mend_links, self.cache, key, manifest)

    async def led_astray(
        self, models: Iterable[tuple[str, Manifest]]
    ) -> list[tuple[str, Manifest]]:
        """Those of some models whose links seem to need mending; waits for no turn."""
        return await self._hashing.run(
            lambda: [model for model in models if is_led_astray(self.cache, *model)]
        )

    def remembered(self, key: str) -> Manifest | None:
        """The manifest with that key as it was last read in this process; None if it never was."""
        return self.cache.remembered_manifest(key)

    async def restore_manifest(self, key: str, manifest: Manifest) -> bool:
        """Write a manifest whose file was damaged; False if it is not any more."""

        def restore() -> bool:
            is_damaged = self._is_damaged(key)
            if is_damaged:
                self.cache.write_manifest_at(key, manifest)
            return is_damaged

        return await self._write(restore)

    async def quarantine_manifest(self, key: str) -> str | None:
        """Move a damaged manifest to quarantine.

        Returns:
            Its place there, as shown to people; None if it is not damaged any more.
        """

        def set_aside() -> Path | None:
            path = self.cache.manifest_path(key)
            return self.cache.set_aside(path) if self._is_damaged(key) else None

        quarantined = await self._write(set_aside)
        return None if quarantined is None else self.cache.shown(quarantined)

    def _is_damaged(self, key: str) -> bool:
        """Whether there is a manifest that cannot be read; asked in the turn of who mends it."""
        is_there = os.path.lexists(self.cache.manifest_path(key))
        return is_there and self.cache.manifest_at(key) is None

    async def find(self, sha256: str, directory: Path) -> Verified | None:
        """A verified file with that digest, from any published model; None if there is none.

        It is linked into ``directory``, the caller's part of staging, so that it stays even if the
        model that has it is removed meanwhile. A file of another daemon's cache is copied: a link
        would change the owner's file.

        Raises:
            StorageFull: There is no disk space for the copy.
        """
        try:
            return await self._hashing.run(self._find, sha256, directory)
        except OSError as error:
            self._check_full(error)
            raise

    def _find(self, sha256: str, directory: Path) -> Verified | None:
        holders = self.cache.holders(sha256, ours=True)
        records = (record for _, manifest in holders for record in manifest.files)
        same = (record for record in records if record.sha256 == sha256)
        return self._take(sorted(same, key=self.cache.is_owners), directory)

    async def find_signed(
        self, url: str, digest: Digest | None, directory: Path
    ) -> Verified | None:
        """The file of ``url`` that was fetched with another signature; see find and signed_urls.

        Files of another daemon's cache are left out: nobody has claimed room for a copy, as the
        size of such a file is known only when its origin answers.
        """

        def search() -> Verified | None:
            records = same_file(self.cache.published(ours=True), url, digest)
            own = (record for record in records if not self.cache.is_owners(record))
            return self._take(own, directory)

        return await self._hashing.run(search)

    def _taken(self, verified: Verified, directory: Path) -> Verified:
        """A published file under a name of our own in ``directory``."""
        name, sha256 = directory / staging_name(), verified.digests.sha256
        if verified.path.is_relative_to(self.cache.owner):
            copied = copy_to(verified.file, name)
            self.cache.stamps.record(sha256, FileStamp.of(copied.path.stat()))
            return replace(verified, file=copied)
        with self.cache.stamps.keeping(sha256, verified.path):
            taken = link_or_copy(verified.file, name)
        if not taken.path.samefile(verified.path):
            self.cache.stamps.record(sha256, FileStamp.of(taken.path.stat()))
        return replace(verified, file=taken)

    async def adopt(self, source: HubSource, etag: str, promise: Promise) -> Verified | None:
        """A blob that another program put into the Hub's tree, hashed; None if none is right."""
        tree = self.cache.hub_tree(source.repo_id)
        adopted = await self._hashing.run(tree.adopt, etag, promise)
        return None if adopted is None else Verified(adopted, etag, 0, adopted.digests.size)

    async def adopt_or_find(
        self, source: HubSource, etag: str, promise: Promise
    ) -> Verified | None:
        """See adopt, and then find, which links into staging; where both find none, a place for it.

        All in one call to a thread, for this is asked of each file that is warmed.

        Raises:
            StorageFull: There is no disk space for a copy.
            CraftcacheError: A file or link in the Hub's tree is in the way, which the message
                names; or as for heal.
        """

        def search() -> Verified | None:
            tree, digest = self.cache.hub_tree(source.repo_id), promise.digest
            if (adopted := tree.adopt(etag, promise)) is not None:
                return Verified(adopted, etag, 0, adopted.digests.size)
            is_known = digest is not None and digest.algorithm == "sha256"
            found = self._find(digest.hex, self.cache.staging) if digest and is_known else None
            if found is not None:
                return replace(found, etag=etag)
            self._heal_or_say()
            tree.check_place()
            return None

        try:
            return await self._hashing.run(search)
        except TreeObstacle as error:
            raise _obstacle(error) from error
        except OSError as error:
            self._check_full(error)
            raise

    async def adopt_snapshot(
        self, source: HubSource, commit: str, filenames: Iterable[str]
    ) -> dict[str, tuple[Verified, Promise]] | None:
        """The files of one commit in the Hub's tree, hashed; None if any is wrong or missing.

        A blob's name there is its digest, so the Hub need not be asked.
        """
        tree = self.cache.hub_tree(source.repo_id)
        etags = {filename: tree.etag_of(commit, filename) or "" for filename in filenames}
        if not all(map(Digest.from_hub_etag, etags.values())):  # nothing is hashed in vain
            return None
        files: dict[str, tuple[Verified, Promise]] = {}
        for filename, etag in etags.items():
            promise = Promise(digest=Digest.from_hub_etag(etag))
            verified = await self.adopt(source, etag, promise)
            if verified is None:
                return None
            files[filename] = verified, promise
        return files

    async def has_index(self, sha256: str, size: int) -> bool:
        """Whether the checkpoint with that digest was inspected and its index is unchanged.

        If so, the index can be handed out afterwards. An index that no manifest vouches for, that
        was edited, or that has another version of the format is not used: it is made anew.

        Args:
            sha256: The checkpoint's sha256, in hex.
            size: Size of the checkpoint in bytes.
        """
        is_there, found = await asyncio.to_thread(self._find_index, sha256, size)
        if found is not None:
            self.indexes.keep(*found)
        elif is_there:
            self._events.tell("index_refused", sha256=sha256)
        return found is not None

    def _find_index(self, sha256: str, size: int) -> tuple[bool, tuple[str, bytes] | None]:
        """Whether there is an index, and its digest and content if it may be used."""
        cache = self.cache
        found = cache.vouched_index(sha256)
        if found is None and not cache.index_path(sha256).exists():
            return False, None
        if found is None:
            # Reading a manifest records its indexes' digests.
            cache.holders(sha256, ours=True)
            found = cache.vouched_index(sha256)
            if found is None:
                log.warning("the index of %s is not what was recorded: it is made anew", sha256)
        try:
            if found is not None:
                parse_index(found[1], file_size=size)
                renew_index(cache, sha256)
        except InvalidIndex as error:
            log.warning("the index of %s is made anew: %s", sha256, error)
            return True, None
        return True, found

    async def write_index(self, sha256: str, index: bytes) -> None:
        """Publish the index of a checkpoint; to be called before the checkpoint is published.

        Manifests that name the checkpoint already are changed to record this index.
        """

        def write() -> tuple[str, bool]:
            digest = self.cache.write_index(sha256, index)
            return digest, bool(self.cache.holders(sha256, ours=True))

        digest, has_holders = await self._add(f"index {sha256}", write)
        self.indexes.keep(digest, index)
        # One that is being published at this moment finds the index, or is asked about it later.
        if has_holders:
            await self.record_index(sha256)

    async def record_index(self, sha256: str) -> None:
        """Record the digest of a checkpoint's index in all manifests that name the checkpoint."""
        await self._write(record_index, self.cache, sha256)

    async def published_at(
        self, source: HubSource, commit: str, filenames: Iterable[str]
    ) -> Manifest | None:
        """An intact manifest of the same repository, under whichever name, at that commit.

        One that leads to another daemon's cache is none: publishing its files would copy them, and
        nobody has claimed the room.
        """
        names = tuple(filenames)

        def search() -> Manifest | None:
            for _, manifest in self.cache.published(ours=True):
                if manifest.source.partition("@")[0] != source.repo_id:
                    continue
                records = manifest.select(source, names)
                if manifest.revision != commit or any(map(self.cache.is_owners, manifest.files)):
                    continue
                if records is not None and all(map(self.cache.is_intact, records)):
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
        selection: Selection = NO_SELECTION,
    ) -> Manifest:
        """Publish files of one commit; see craftcache.cache.publish."""
        publish = partial(publish_hub, is_named=is_named, as_need=as_need, selection=selection)
        return self._told(
            await self._add(source.repo_id, publish, self.cache, source, commit, files, origin)
        )

    async def publish_url(
        self,
        source: UrlSource,
        files: Mapping[str, tuple[Verified, str]],
        *,
        as_need: bool = False,
    ) -> Manifest:
        """Publish files of a URL; see craftcache.cache.publish."""
        publish = partial(publish_url, as_need=as_need)
        return self._told(await self._add(str(source), publish, self.cache, source, files))

    async def follow_owner(self, key: str, manifest: Manifest, root: Path) -> None:
        """Publish a manifest whose files are in another daemon's cache; see OwnerCache."""

        def publish() -> None:
            link = self.cache.owner
            if not (link.is_symlink() and os.readlink(link) == os.fspath(root)):
                link.unlink(missing_ok=True)
                link.symlink_to(root)
            self.cache.write_manifest_at(key, manifest)

        await self._write(publish)

    async def mark_asked_for(self, source: RemoteSource) -> None:
        """Record that a dependency was also asked for by name; see craftcache.cache.publish."""
        await self._write(mark_asked_for, self.cache, source)

    async def manifest_at(self, key: str, *, owned: bool = False) -> Manifest | None:
        """The current manifest with that key.

        Args:
            key: See craftcache.cache.manifest.manifest_key.
            owned: Whether one of ours counts too that others may write to.
        """
        return await asyncio.to_thread(self.cache.manifest_at, key, ours=not owned, owned=owned)

    async def publish_generation(
        self, name: str, watched: Watched, files: Mapping[str, Verified]
    ) -> Manifest:
        """Publish a generation of a watched directory; see craftcache.cache.publish."""
        return self._told(await self._write(publish_generation, self.cache, name, watched, files))

    async def serve_generation(self, name: str, generation: Manifest) -> Manifest:
        """Make a generation the served one; see craftcache.cache.publish."""
        return await self._write(serve_generation, self.cache, name, generation)

    def _told(self, manifest: Manifest) -> Manifest:
        """Tell that a model was published."""
        source, revision, size = manifest.source, manifest.revision, manifest.size
        self._events.tell("published", source=source, revision=revision, size=size)
        return manifest

    async def _add(
        self, source: str, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Like _write, beside others that add to the cache; see Turns.adding."""
        async with self._turns.adding(source):
            return await self._written(write, *args, **kwargs)

    async def _write(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``write`` while nothing else is written; a cancelled caller waits for its end.

        Raises:
            StorageFull: There is no disk space for the small files and links that it writes.
        """
        async with self._turns.changing():
            return await self._written(write, *args, **kwargs)

    async def _written(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def heal_and_write() -> T:
            self._heal()
            return write(*args, **kwargs)

        try:
            return await self._writing.run(heal_and_write)
        except TreeObstacle as error:
            raise _obstacle(error) from error
        except OSError as error:
            self._check_full(error)
            raise
        finally:
            self.changed.set()

    def _check_full(self, error: OSError) -> None:
        """Raise StorageFull, which people understand, if the error is that the disk is full."""
        if error.errno not in FULL:
            return
        # The error names the file, which may be on another file system that a link leads to.
        place = Path(error.filename) if error.filename else self.cache.root
        raise storage_full(
            place, SMALL_FILES_BYTES, error=error, least=SMALL_FILES_BYTES
        ) from error

    async def exclusively(self, change: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a change of the cache directory while nothing is published or removed."""
        return await self._write(change, *args, **kwargs)

    async def published(self) -> list[tuple[str, Manifest]]:
        """All published manifests that this user owns, with their keys, by source.

        Manifests that others may write to are among them; they are served once rechecked.
        """
        found = await asyncio.to_thread(lambda: list(self.cache.published(owned=True)))
        return sorted(found, key=lambda item: item[1].source)

    async def remove(self, key: str, spared: Collection[str] = ()) -> Removed:
        """Remove a model and every blob that no other model and no other snapshot needs.

        Args:
            key: Key of its manifest: the source's name may hold a secret that the caller lacks.
            spared: Keys of models that stay, besides ``kept_keys``, though only this model depends
                on them.
        """
        return await self._write(remove, self.cache, key, {*spared, *self.kept_keys()})

    async def underway(self) -> list[tuple[str, Manifest]]:
        """Records of what is being published, or was when the daemon was killed; see underway."""
        return await asyncio.to_thread(lambda: sorted(underway(self.cache), key=itemgetter(0)))

    async def remove_underway(self, name: str) -> int:
        """Remove what a kill has left of a publication; see removal.remove_underway."""
        return await self._write(remove_underway, self.cache, name)

    async def remove_unneeded(self, removed: Manifest) -> Removed:
        """Remove the dependencies that a removed model leaves; see removal.remove_unneeded."""
        return await self._write(remove_unneeded, self.cache, removed, self.kept_keys())

    async def set_aside(self, record: FileRecord, stamp: Stamp) -> Path | None:
        """Move a published file with wrong content to quarantine; see removal.set_aside."""
        return await self._write(set_aside, self.cache, record, stamp)

    def _take(self, records: Iterable[FileRecord], directory: Path) -> Verified | None:
        """The first of these files whose hash is right, linked into ``directory``."""
        for record in records:
            verified = self._verify(record)
            if isinstance(verified, Verified):
                with contextlib.suppress(FileNotFoundError):  # removed just now
                    return self._taken(verified, directory)
        return None

    def _verify(self, record: FileRecord, *, anew: bool = False) -> Verified | Stamp | None:
        """A file if it is right, its stamp if its hash is wrong, None if it cannot be read."""
        if not anew and self.cache.is_intact(record):
            return self.as_verified(record)
        try:
            hashed = self.cache.hash_again(record)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("%s cannot be verified: %s", record.path, error)
            return None
        if hashed.digests.sha256 != record.sha256:
            return hashed.stamp
        return Verified(hashed, record.etag, 0, hashed.digests.size)

    async def sweep(self, *, before: float, derived_before: float | None = None) -> int:
        """Remove blobs that no model names; see removal.sweep."""
        async with self._turns.changing():
            return await self._writing.run(
                sweep, self.cache, before=before, derived_before=derived_before
            )

    async def discard(self, verified: Verified) -> None:
        """Remove a file's name in staging; what was published keeps its own names.

        In a thread, as removing the last name frees the blocks, which takes time. It is done even
        if the caller is cancelled.
        """
        await asyncio.shield(asyncio.to_thread(self.cache.discard, verified.file))


def _obstacle(error: TreeObstacle) -> CraftcacheError:
    # A bare CraftcacheError is the daemon's own fault: a worker may still fetch for itself.
    return CraftcacheError(str(error), hint="Mount what it leads to, or move it away")


def _clear_leftovers(staging: Path, predecessor: str) -> None:
    """Remove files of killed writers.

    Those of the daemon before are known by its process id, and by that nobody has them open: in a
    container a worker may have the same. What else a worker may be fetching by itself is younger.

    Args:
        staging: The directory.
        predecessor: Process id of the daemon before; empty where there was none.
    """
    too_old = time.time() - LEFTOVER_SECONDS
    for path in staging.glob("*.tmp"):
        with contextlib.suppress(OSError):
            is_predecessors = path.name.partition("-")[0] == predecessor
            is_old = path.lstat().st_mtime < too_old
            if is_old or (is_predecessors and is_in_use(path) is False):
                path.unlink()


def _last_owner(cache: CacheDir) -> str:
    """Process id of the daemon that locked the cache last, whether it lives or not."""
    with contextlib.suppress(OSError):
        return _lock_path(cache).read_text("ascii", "replace").strip()
    return ""


def _lock_path(cache: CacheDir) -> Path:
    return cache.private / "daemon.lock"


def _is_lock(cache: CacheDir, descriptor: int) -> bool:
    """Whether the lock file at its path is still the file that this daemon has locked."""
    try:
        return os.path.samestat(_lock_path(cache).stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(cache: CacheDir) -> int:
    """Lock the cache for this daemon until the returned descriptor is closed."""
    path = _lock_path(cache)
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
