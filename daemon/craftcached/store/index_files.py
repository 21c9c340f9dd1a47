"""The index files of the cache: found, written, and their digests recorded in manifests."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from craftcache.cache.publish import record_index
from craftcache.checkpoint.index import InvalidIndex
from craftcache.checkpoint.index import parse as parse_index

from .removal import renew_index

if TYPE_CHECKING:
    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import FileRecord
    from craftcached.events import Events

    from .changes import Changes
    from .indexes import Indexes

__all__ = ["IndexFiles"]

log = logging.getLogger("craftcached")


class IndexFiles:
    """The index of each checkpoint, by the checkpoint's sha256; has no state of its own.

    Args:
        cache: The cache directory.
        changes: Makes changes of it.
        sealed: Keeps the indexes that were checked.
        events: Told of an index that is not what was recorded.
    """

    def __init__(self, cache: CacheDir, changes: Changes, sealed: Indexes, events: Events) -> None:
        self._cache = cache
        self._changes = changes
        self._sealed = sealed
        self._events = events

    async def has(self, sha256: str, size: int) -> bool:
        """Whether the checkpoint with that digest was inspected and its index is unchanged.

        If so, the index can be handed out afterwards. An index that no manifest vouches for, that
        was edited, or that has another version of the format is not used: it is made anew.

        Args:
            sha256: The checkpoint's sha256, in hex.
            size: Size of the checkpoint in bytes.
        """
        is_there, found = await asyncio.to_thread(self._find_index, sha256, size)
        if found is not None:
            self._sealed.keep(*found)
        elif is_there:
            self._events.tell("index_refused", sha256=sha256)
        return found is not None

    def _find_index(self, sha256: str, size: int) -> tuple[bool, tuple[str, bytes] | None]:
        """Whether there is an index, and its digest and content if it may be used."""
        cache = self._cache
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

    async def write(self, sha256: str, index: bytes) -> None:
        """Publish the index of a checkpoint; to be called before the checkpoint is published.

        Manifests that name the checkpoint already are changed to record this index.
        """

        def write() -> tuple[str, bool]:
            digest = self._cache.write_index(sha256, index)
            return digest, bool(self._cache.holders(sha256, ours=True))

        digest, has_holders = await self._changes.add(f"index {sha256}", write)
        self._sealed.keep(digest, index)
        # One that is being published at this moment finds the index, or is asked about it later.
        if has_holders:
            await self.record(sha256)

    async def record(self, sha256: str) -> None:
        """Record the digest of a checkpoint's index in all manifests that name the checkpoint."""
        await self._changes.make(record_index, self._cache, sha256)

    async def is_right(self, record: FileRecord) -> bool:
        """Whether the index of a published file is there and has the digest of its record."""
        return await asyncio.to_thread(self._cache.read_index, record) is not None
