"""The read-only daemon: serves another daemon's cache, its owner's, and never writes to it.

A daemon with ``read_only`` keeps all that is its own in a cache directory of its own, its overlay.
A model of the owner's cache has a manifest there whose records lead, by one link, to the owner's
files: they are served in place. What the owner says of a file is a promise like an origin's: the
file is hashed before it is served for the first time, and again when its stamp has changed.

    the owner's manifest --follow--> a manifest of ours --hash, inspect--> the owner's file served

The owner goes on as if nobody followed. A new manifest of its takes the place of the one that was
followed before; a model that it removes, or a file that turns out wrong, is one that this node
lacks, and is fetched into the overlay. While the owner's cache is out of reach, as in an outage of
its file system, nothing is known to be removed, and what was followed stays so.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from craftcache.cache.directory import OWNER_PREFIX, CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.cache.plain_file import plain
from craftcache.cache.stamps import FileStamp
from craftcache.errors import CraftcacheError
from craftcache.sources import parse

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.cache.manifest import Manifest
    from craftcache.sources import RemoteSource

    from .store import Store

__all__ = ["OwnerCache"]

log = logging.getLogger("craftcached")


class OwnerCache:
    """Follows another daemon's cache.

    The mutable state: which manifests of the owner were seen last, by key. It changes on the event
    loop between awaits; after a restart all are looked at again.

    Args:
        store: The store of the overlay.
        root: The owner's cache directory.
    """

    def __init__(self, store: Store, root: Path) -> None:
        self._store = store
        self._cache = CacheDir(root, store.cache.trusted_uids)
        self._seen: dict[str, FileStamp | None] = {}
        # By key; each guards the manifest here between the look at the owner's and its writing, so
        # that of two that follow at once the later one has the later word. The store's
        # WritersLock is taken inside, and nothing else.
        self._key_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def follow_all(self) -> None:
        """Follow every model that the owner has now."""
        for key, manifest in await asyncio.to_thread(lambda: list(self._cache.published())):
            try:
                source = parse(manifest.source)
            except CraftcacheError:
                continue
            if manifest_key(source) == key:  # not of a URL whose secret is left out
                await self.follow(source)

    def is_followed(self, source: RemoteSource) -> bool:
        """Whether the owner's manifest of ``source`` is the one that was seen last (one stat).

        One that is out of reach counts as that.
        """
        key = manifest_key(source)
        if key not in self._seen:
            return False
        try:
            return self._seen[key] == self._stamp(key)
        except OSError:
            return True

    async def follow(self, source: RemoteSource) -> None:
        """Take over what the owner's cache has of ``source`` now; nothing is read of its files."""
        key = manifest_key(source)
        async with self._key_locks.setdefault(key, asyncio.Lock()):
            try:
                stamp = await asyncio.to_thread(self._stamp, key)
                if await self._is_as_seen(key, stamp):
                    return
                theirs = await asyncio.to_thread(self._theirs, key) if stamp else None
            except OSError as error:
                log.warning("%s: the owner's cache is out of reach: %s", source.shown, error)
                return
            if stamp is not None and theirs is None:
                log.warning("%s: the owner's manifest cannot be believed", source.shown)
            else:
                await self._take_over(source, key, theirs)
            self._seen[key] = stamp

    async def _is_as_seen(self, key: str, stamp: FileStamp | None) -> bool:
        """Whether nothing has changed there, nor is what was followed removed here since."""
        if key not in self._seen or self._seen[key] != stamp:
            return False
        return stamp is None or await self._store.manifest_at(key) is not None

    async def _take_over(self, source: RemoteSource, key: str, theirs: Manifest | None) -> None:
        """Do as the owner has done: publish its manifest, or remove what it has no more."""
        ours = await self._store.manifest_at(key)
        if theirs is not None and _is_newer(self._store.cache, theirs, ours):
            led = self._led_to(theirs)
            if ours is None or ours.files != led.files:
                await self._store.follow_owner(key, led, self._cache.root)
                log.info("%s: the owner's, at %s", source.shown, theirs.revision)
        elif theirs is None and ours is not None and _is_owners(self._store.cache, ours):
            log.info("%s: the owner has it no more", source.shown)
            await self._store.follow_removal(key, source)

    def _led_to(self, manifest: Manifest) -> Manifest:
        """The owner's manifest with the paths by which this node sees the files.

        Indexes are those that this node has made, or will make.
        """
        cache = self._store.cache
        files = tuple(
            replace(
                record,
                path=f"{OWNER_PREFIX}{record.path}",
                index_sha256=cache.index_digest(record.sha256),
            )
            for record in manifest.files
        )
        return replace(manifest, files=files)

    def _stamp(self, key: str) -> FileStamp | None:
        """The stamp of the owner's manifest; None where the owner has none.

        Raises:
            OSError: Whether it has one cannot be told.
        """
        path = self._cache.manifest_path(key)
        try:
            return FileStamp.of(os.stat(path))
        except FileNotFoundError:
            if not path.parent.is_dir():  # not mounted, or not as it was
                raise
            return None

    def _theirs(self, key: str) -> Manifest | None:
        """The owner's manifest; None if it is damaged, or others may write to it.

        Raises:
            OSError: It cannot be read now.
        """
        manifest = self._cache.manifest_at(key, ours=True)
        if manifest is None:
            open(self._cache.manifest_path(key), "rb", opener=plain).close()
        return manifest


def _is_newer(cache: CacheDir, theirs: Manifest, ours: Manifest | None) -> bool:
    """Whether the owner's manifest takes the place of the one here, which may be fetched here."""
    if ours is None or _is_owners(cache, ours):
        return True
    return theirs.published_at > ours.published_at


def _is_owners(cache: CacheDir, manifest: Manifest) -> bool:
    return any(map(cache.is_owners, manifest.files))
