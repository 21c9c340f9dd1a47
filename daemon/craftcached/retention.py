"""Retention: what stays in the cache by an administrator's word, and what is removed by it.

Evictions that the daemon does by itself are eviction.maintenance's and the fetches'.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from craftcache.cache.manifest import manifest_key
from craftcache.daemon.administration import Removal
from craftcache.errors import InvalidSource, PolicyDenied
from craftcache.model_filter import ModelFilter, ModelTraits, are_met
from craftcache.sources import WatchSource, parse

from .store.removal import Removed, superseded_revisions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craftcache.cache.manifest import Manifest
    from craftcache.daemon.administration import Eviction, Pruning
    from craftcache.daemon.room import RoomReport

    from .database import Pin
    from .events import Events
    from .eviction.parts import EvictionParts
    from .eviction.prune import Pruner
    from .store.store import Store
    from .watch import Watches

__all__ = ["Retention"]


class Retention:
    """Pins, removes, evicts and prunes models as people ask for it.

    Args:
        store: The published models.
        eviction: What keeps models in the cache or lets them go.
        pruner: Removes models that were chosen by filters.
        watches: The watched directories, whose models are not removed.
        events: Told of removals.
        forget: Says no more of a source that is not warm; returns whether anything was said.
    """

    def __init__(
        self,
        *,
        store: Store,
        eviction: EvictionParts,
        pruner: Pruner,
        watches: Watches,
        events: Events,
        forget: Callable[[str], bool],
    ) -> None:
        self._store = store
        self._pins = eviction.pins
        self._holds = eviction.holds
        self._uses = eviction.uses
        self._evictor = eviction.evictor
        self._pruner = pruner
        self._watches = watches
        self._events = events
        self._forget = forget

    async def remove(self, text: str) -> Removal:
        """Remove a model; of one that is not cached, what the status says of it.

        Raises:
            NotFound: It is not in the cache, and the status says nothing of it.
            PolicyDenied: It is pinned or watched.
        """
        source = parse(text)
        if isinstance(source, WatchSource) and self._watches.is_watched(source):
            raise PolicyDenied(
                "it is watched",
                source=source.shown,
                hint=f"craftcache watch rm {source.name}",
            )
        if self._store.manifest(source) is None and self._forget(source.shown):
            return Removal(source.shown, 0, was_cached=False)
        manifest, key = self._store.required_manifest(source), manifest_key(source)
        await self._pins.check_unpinned(source)
        removed = await self._store.remove(key)
        removed += await self._remove_superseded(manifest)
        for gone in removed.keys:
            await self._uses.forget(gone)
            await self._holds.forget(gone)
        self._events.tell("removed", source=source.shown, freed_bytes=removed.freed)
        return Removal(source.shown, removed.freed)

    async def _remove_superseded(self, past: Manifest) -> Removed:
        """Remove the earlier revisions that a removed model left, unless they are pinned."""
        removed = Removed()
        for key in await asyncio.to_thread(superseded_revisions, self._store.cache, past):
            if not self._pins.find(key):
                removed += await self._store.remove(key)
        return removed

    async def pin(self, text: str, *, lock: bool, expires_in: float | None = None) -> Pin:
        """Keep a model from being evicted and removed; see Pins.pin."""
        return await self._pins.pin(parse(text), lock=lock, expires_in=expires_in)

    async def unpin(self, text: str) -> None:
        """Allow a model to be evicted and removed again; see Pins.unpin."""
        await self._pins.unpin(parse(text))

    async def evict(self, wanted: int | None, *, dry_run: bool) -> Eviction:
        """Evict models to free ``wanted`` bytes, or down to the quota; see Evictor.evict."""
        return await self._evictor.evict(wanted, dry_run=dry_run)

    async def prune(self, filters: Sequence[str], *, dry_run: bool) -> Pruning:
        """Remove the models that all filters mean and nothing needs; see Pruner.prune.

        Raises:
            InvalidSource: There is no filter, or one that is none.
        """
        conditions = [ModelFilter.parse(text) for text in filters]
        if not conditions:
            raise InvalidSource(
                "no filter says which models are meant",
                hint="Send one like 'accessed>30d'; DELETE /v1/models/{source} removes one model",
            )
        now = time.time()
        chosen = [
            key
            for key, manifest in await self._store.published()
            # A watch keeps as many of its generations as its rule says, and an owner its files.
            if manifest.watched is None
            and not any(map(self._store.cache.is_owners, manifest.files))
            and are_met(conditions, self._traits(key, manifest), now)
        ]
        return await self._pruner.prune(chosen, dry_run=dry_run)

    def _traits(self, key: str, manifest: Manifest) -> ModelTraits:
        return ModelTraits(
            manifest.source,
            manifest.size,
            self._pins.find(key) is not None,
            manifest.published_at.timestamp(),
            self._uses.last(key) or None,
        )

    async def room(self) -> RoomReport:
        """The room of the cache, and what takes it; see Evictor.report."""
        return await self._evictor.report()
