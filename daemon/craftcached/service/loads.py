"""Loads: the files of a source opened for a worker, from what is published."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from craftcache.cache.directory import OWNER_PREFIX, CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.cache.opened import FileInfo, OpenFile
from craftcache.checkpoint.filenames import check_checkpoint
from craftcache.errors import NotFound, Unavailable
from craftcache.sources import HubSource
from craftcache.wire import Loaded, Resolved
from craftcached.fetch import Priority
from craftcached.store.links import leads_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.sources import RemoteSource
    from craftcache.wire import Load, Progress, Resolve
    from craftcached.eviction.parts import EvictionParts
    from craftcached.settings import Settings
    from craftcached.store.opener import BlobOpener
    from craftcached.store.owner import OwnerCache
    from craftcached.store.store import Store
    from craftcached.warm.warmed import Warmed

    from .warming import Warming

__all__ = ["Loads"]

log = logging.getLogger("craftcached")

OPEN_ATTEMPTS = 4
"""Times that a load warms and opens a model that is removed in between each time."""


class Loads:
    """Opens files for workers; has no state of its own.

    Args:
        settings: The settings the daemon runs with.
        store: The published models.
        opener: Opens published files for workers.
        warming: Brings what is missing.
        eviction: Told of what is used, and of what is needed until it is open.
        owner: Another daemon's cache that is served from as well; None for none.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        opener: BlobOpener,
        warming: Warming,
        eviction: EvictionParts,
        owner: OwnerCache | None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._opener = opener
        self._warming = warming
        self._uses = eviction.uses
        self._surveyor = eviction.surveyor
        self._owner = owner

    async def load(self, request: Load, uid: int, report: Callable[[Progress], None]) -> Loaded:
        """Open the files of a source; those that are missing are warmed first.

        Raises:
            NotACheckpoint: The name of one of them is not that of a checkpoint.
            CraftcacheError: See Warmer.warm.
        """
        source = request.source
        for name in request.names:
            check_checkpoint(name, source=source.shown)
        # It stays until it is open: from then on the kernel knows that it is in use.
        with self._surveyor.needing(manifest_key(source)):
            for attempt in range(OPEN_ATTEMPTS):
                # What was made sure of just now is served, whatever its owner has done since.
                if loaded := self.open(request, is_fresh=attempt > 0):
                    return loaded
                try:
                    await self._warming.ensure(
                        source, request.names, Priority.WAITED_FOR, report, for_uid=uid
                    )
                except OSError as error:
                    if self._owner is None:
                        raise
                    # A file of another daemon's cache was removed while it was looked at.
                    log.info("%s: %s; looked for again", source.shown, error)
        raise Unavailable(
            "it is removed as often as it is brought",
            source=source.shown,
            hint="See who removes it; the daemon's log says when",
        )

    def open(self, request: Load, *, is_fresh: bool = False) -> Loaded | None:
        """Open the files of a source if all are published and untouched; None otherwise.

        Args:
            request: Names the files.
            is_fresh: Whether they are served though another daemon's cache has others by now.
        """
        source = request.source
        if not (is_fresh or self._owner is None or self._owner.is_followed(source)):
            return None
        manifest = self._store.trusted(source)
        records = manifest.select(source, request.names) if manifest else None
        if manifest is None or records is None or not manifest.is_by_name:
            return None
        opened = self._opener.open(manifest, records)
        if opened is None:
            return None
        self._uses.note(manifest_key(source))
        files = zip(map(FileInfo.recorded, records), opened.blobs, opened.indexes, strict=True)
        return Loaded(
            source.shown,
            manifest.revision,
            tuple(OpenFile(info, blob, index) for info, blob, index in files),
            map=self._settings.map,
        )

    async def resolve(
        self, request: Resolve, uid: int, report: Callable[[Progress], None]
    ) -> Resolved:
        """Where a file stands below the cache directory, as huggingface_hub would name it."""
        source, name = request.source, request.name
        with self._surveyor.needing(manifest_key(source)):
            warmed = await self._warming.ensure(
                source, (name,), Priority.WAITED_FOR, report, for_uid=uid
            )
            return self._resolved(source, name, warmed)

    def _resolved(self, source: RemoteSource, name: str, warmed: Warmed) -> Resolved:
        record = warmed.manifest.file(name)
        if record is None:
            raise NotFound(f"no file {name}", source=source.shown, hint="Try again")
        cache = self._store.cache
        path = cache.path(record)
        if cache.is_owners(record):  # which workers see as their cache directory
            cache = CacheDir(self._settings.cache_dir, cache.trusted_uids)
            path = cache.root / record.path.removeprefix(OWNER_PREFIX)
        if isinstance(source, HubSource):
            tree = cache.hub_tree(source.repo_id)
            pointer = tree.pointer(warmed.manifest.revision, record.filename)
            path = pointer if leads_to(pointer, path) else path  # others may edit the link
        status = path.stat()
        return Resolved(cache.relative(path), status.st_dev, status.st_ino)
