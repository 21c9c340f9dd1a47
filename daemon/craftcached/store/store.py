"""The store: coroutines that find and remove models; the cache directory's only writer.

What exists is decided by the files alone; this class keeps in memory only what it can read again.
The states of a file and the meaning of each directory are described in craftcache.cache.directory.
"""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from craftcache.cache.manifest import manifest_key
from craftcache.cache.publish import Verified, take_over
from craftcache.cache.underway import underway
from craftcache.digests import Stamp
from craftcache.errors import NotFound
from craftcached.events import Events
from craftcached.singleflight import SingleFlight
from craftcached.threads import Threads

from .batches import paced_batches
from .cache_lock import CacheLock
from .changes import Changes
from .index_files import IndexFiles
from .indexes import Indexes
from .links import is_led_astray, mend_links
from .local_files import LocalFiles
from .model_publisher import ModelPublisher
from .removal import (
    Removed,
    remove,
    remove_underway,
    remove_unneeded,
    set_aside,
    sweep,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.cache.stamps import FileStamp
    from craftcache.dependencies import Dependency
    from craftcache.sources import RemoteSource

__all__ = ["Store"]

log = logging.getLogger("craftcached")

HASHING_THREADS = 4
"""Threads for hashing, which takes seconds a file and must not hold up short disk accesses."""

P = ParamSpec("P")
T = TypeVar("T")


class Store:
    """Finds and removes what the cache directory holds, and has the parts that publish.

    Use as an async context manager: entering refuses a cache that a newer release wrote, makes the
    directories, takes the daemon's lock on the cache and clears what a killed predecessor left in
    staging under names of no use.

    Models of different sources are published beside one another, see WritersLock; what removes
    names, or changes manifests of other sources, has the cache for itself. A publication that is
    under way is finished before the next change, even if its request has been cancelled since. The
    order of that lock and others is stated in FileAcquirer.

    Args:
        cache: The cache directory.
        events: Told of models that are published, and of files that were set aside as wrong.

    Attributes:
        changed: Set when something was published or removed; its one reader clears it.
        kept_keys: Returns the keys of the models that stay, by a person's word, though no model
            depends on them any more; asked on the event loop before each removal.
        indexes: The checked indexes, sealed in memory.
        index_files: The indexes on the disk.
        local: Finds what is on this node already.
        publisher: Publishes verified files.
        lock: The daemon's lock on the cache.
    """

    def __init__(self, cache: CacheDir, events: Events | None = None) -> None:
        self.cache = cache
        self.lock = CacheLock(cache)
        self.changed = asyncio.Event()
        self.indexes = Indexes()
        self.kept_keys: Callable[[], Collection[str]] = frozenset
        self._events = events or Events()
        self._hashes: SingleFlight[Verified | Stamp | None, None] = SingleFlight()
        self._changes = Changes(cache.root, self.lock, self.changed)
        self.index_files = IndexFiles(cache, self._changes, self.indexes, self._events)
        self._hashing = Threads(HASHING_THREADS, "hash")
        self.local = LocalFiles(cache, self._hashing)
        self.publisher = ModelPublisher(cache, self._changes, self._events)

    async def __aenter__(self) -> Self:
        await self.lock.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._hashing.close()
        self._changes.close()
        self.indexes.close()
        await self.lock.close()

    def manifest(self, source: RemoteSource) -> Manifest | None:
        """The current manifest of ``source``: one stat, and a read only if it changed.

        A manifest that another user owns counts as none, so its files are fetched and verified
        anew. A manifest of ours may be writable for others: see trusted, believed
        and recheck.
        """
        return self._manifest(source)[0]

    def required_manifest(self, source: RemoteSource) -> Manifest:
        """The manifest of a published source.

        Raises:
            NotFound: It is not in the cache.
        """
        manifest = self.manifest(source)
        if manifest is None:
            raise NotFound(
                "not in the cache", source=source.shown, hint=f"craftcache warm {source.shown}"
            )
        return manifest

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
            return self.local.as_verified(record)

        async def work(_: object) -> Verified | Stamp | None:
            return await self._hashing.run(self.local.check, record, anew=anew)

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

    async def batches(self) -> AsyncIterator[Sequence[tuple[str, Manifest]]]:
        """All published models a few at a time, with pauses: for who looks at thousands."""
        async for batch in paced_batches(await self.published()):
            yield batch

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
        await self._changes.make(take_over, self.cache, key, manifest)
        return True

    async def quarantine_wrong(self, record: FileRecord, stamp: Stamp) -> str | None:
        """Move a file with wrong content to quarantine, and tell of it.

        One that cannot be moved is hashed at each load, so that it is not served either.

        Returns:
            Its place there, as shown to people; None if another file is in its place by now, or if
            it is in a cache that another daemon owns, where nothing is changed.
        """
        if self.cache.is_owners(record):
            log.error("%s does not hold what its owner's manifest says", record.path)
            return None
        await self.forget_stamps(record.sha256)
        quarantined = await self.set_aside(record, stamp)
        if quarantined is None:
            return None
        await self._changes.make(self.cache.forget_index, record.sha256)
        shown = self.cache.shown(quarantined)
        log.error("%s does not hold what was verified; it is %s now", record.path, shown)
        self._events.tell("quarantined", path=record.path, sha256=record.sha256, now=shown)
        return shown

    async def check_untouched(self, verified: Verified) -> None:
        """Check that a verified file is what it was; see HashedFile.check_untouched.

        Raises:
            IntegrityError: Others have changed it, or put another in its place.
        """
        is_known = partial(self.cache.stamps.has, verified.digests.sha256)
        await self._hashing.run(verified.file.check_untouched, is_known)

    async def record_stamp(self, sha256: str, stamp: FileStamp) -> None:
        """Record that a file with this stamp was found to have that digest."""
        await self._hashing.run(self.cache.stamps.record, sha256, stamp)

    async def forget_stamps(self, sha256: str) -> None:
        """Have files of that digest hashed again before they are served."""
        await self._hashing.run(self.cache.stamps.forget, sha256)

    async def mend_links(self, key: str, manifest: Manifest) -> list[FileRecord]:
        """Put right what leads unmodified programs to a model's files; see links.mend_links.

        Of a model in another daemon's cache that is the owner's to do.
        """
        if any(map(self.cache.is_owners, manifest.files)):
            return []
        return await self._changes.make(mend_links, self.cache, key, manifest)

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

    async def follow_owner(self, key: str, manifest: Manifest, root: Path) -> None:
        """Publish a manifest whose files are in another daemon's cache; see OwnerCache."""

        def publish() -> None:
            link = self.cache.owner
            if not (link.is_symlink() and os.readlink(link) == os.fspath(root)):
                link.unlink(missing_ok=True)
                link.symlink_to(root)
            self.cache.write_manifest_at(key, manifest)

        await self._changes.make(publish)

    async def follow_removal(self, key: str, source: RemoteSource) -> None:
        """Remove a model that is gone from the other daemon's cache, and tell of it."""
        removed = await self.remove(key)
        self._events.tell("removed", source=source.shown, freed_bytes=removed.freed)

    async def manifest_at(self, key: str, *, owned: bool = False) -> Manifest | None:
        """The current manifest with that key.

        Args:
            key: See craftcache.cache.manifest.manifest_key.
            owned: Whether one of ours counts too that others may write to.
        """
        return await asyncio.to_thread(self.cache.manifest_at, key, ours=not owned, owned=owned)

    async def exclusively(self, change: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a change of the cache directory while nothing is published or removed."""
        return await self._changes.make(change, *args, **kwargs)

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
        return await self._changes.make(remove, self.cache, key, {*spared, *self.kept_keys()})

    async def underway(self) -> list[tuple[str, Manifest]]:
        """Records of what is being published, or was when the daemon was killed; see underway."""
        return await asyncio.to_thread(lambda: sorted(underway(self.cache), key=itemgetter(0)))

    async def remove_underway(self, name: str) -> int:
        """Remove what a kill has left of a publication; see removal.remove_underway."""
        return await self._changes.make(remove_underway, self.cache, name)

    async def remove_unneeded(self, removed: Manifest) -> Removed:
        """Remove the dependencies that a removed model leaves; see removal.remove_unneeded."""
        return await self._changes.make(remove_unneeded, self.cache, removed, self.kept_keys())

    async def set_aside(self, record: FileRecord, stamp: Stamp) -> Path | None:
        """Move a published file with wrong content to quarantine; see removal.set_aside."""
        return await self._changes.make(set_aside, self.cache, record, stamp)

    async def sweep(self, *, before: float, derived_before: float | None = None) -> int:
        """Remove blobs that no model names; see removal.sweep."""
        return await self._changes.make_quietly(
            sweep, self.cache, before=before, derived_before=derived_before
        )

    async def discard(self, verified: Verified) -> None:
        """Remove a file's name in staging; what was published keeps its own names.

        In a thread, as removing the last name frees the blocks, which takes time. It is done even
        if the caller is cancelled.
        """
        await asyncio.shield(asyncio.to_thread(self.cache.discard, verified.file))
