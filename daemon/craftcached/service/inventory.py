"""The inventory: which models are published and how they are, and the daemon's own state."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import TYPE_CHECKING

from craftcache.cache.manifest import manifest_key
from craftcache.sources import parse, shown_url
from craftcache.version import VERSION
from craftcache.wire import CachedModel, DaemonStatus, first_page
from craftcached.residency.total import ResidentTotal
from craftcached.status import ModelState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.wire import Models, ModelsPage, NotWarm
    from craftcached.directory_monitor import DirectoryMonitor
    from craftcached.eviction.parts import EvictionParts
    from craftcached.observability import Observability
    from craftcached.overview import Overview
    from craftcached.residency.residency import Residency
    from craftcached.scrub import Integrity
    from craftcached.settings import Settings
    from craftcached.store.store import Store
    from craftcached.warm.queue import WarmQueue
    from craftcached.warm.warmer import Warmer
    from craftcached.watch import Watches

__all__ = ["Inventory"]

LOOKED_AT_ONCE = 64
"""Models that are looked at together, before others have their turn."""


class Inventory:
    """Describes models and the daemon; has no state of its own.

    Args:
        settings: The settings the daemon runs with.
        started_at: Time of the daemon's start, in seconds since the epoch.
        store: The published models.
        residency: Knows which files are in memory.
        eviction: Knows which models stay, and when they were used.
        warmer: Knows what is being brought.
        queue: The queued warms.
        watches: The watched directories.
        integrity: Knows what was found wrong.
        monitor: Reports which of the daemon's own directories and sockets are gone.
        observability: What the daemon sees of itself.
        overview: Completes a status for people.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        started_at: float,
        store: Store,
        residency: Residency,
        eviction: EvictionParts,
        warmer: Warmer,
        queue: WarmQueue,
        watches: Watches,
        integrity: Integrity,
        monitor: DirectoryMonitor,
        observability: Observability,
        overview: Overview,
    ) -> None:
        self._settings = settings
        self._started_at = started_at
        self._store = store
        self._residency = residency
        self._resident_total = ResidentTotal(residency, store.cache.path_text)
        self._pins = eviction.pins
        self._holds = eviction.holds
        self._uses = eviction.uses
        self._warmer = warmer
        self._queue = queue
        self._watches = watches
        self._integrity = integrity
        self._monitor = monitor
        self._observability = observability
        self._overview = overview

    async def models(self) -> list[ModelState]:
        """All published models, by source."""
        published = await self._store.published()
        return [state for batch in _batches(published) for state in await self._states(batch)]

    async def model(self, text: str) -> ModelState:
        """One published model.

        Raises:
            NotFound: It is not in the cache.
        """
        source = parse(text)
        manifest = self._store.required_manifest(source)
        (state,) = await self._states([(manifest_key(source), manifest)])
        return state

    async def page(self, request: Models) -> ModelsPage:
        """The models whose source sorts after that of the request, as many as one message holds.

        Only those are looked at, or a list of thousands would take as many looks at all of them.
        """
        published = await self._store.published()
        later = [item for item in published if item[1].source > request.after]
        states: list[CachedModel] = []
        for batch in _batches(later):
            states += [state.model for state in await self._states(batch)]
            page = first_page(states)
            if page.next:
                return page
        return first_page(states)

    async def status(self) -> DaemonStatus:
        """The daemon's state at this moment; sizes are in bytes."""
        published = await self._store.published()
        manifests = [manifest for _, manifest in published]
        is_owners = self._store.cache.is_owners
        blobs = {
            record.path: record.size
            for manifest in manifests
            for record in manifest.files
            if not is_owners(record)  # what another daemon keeps takes no room of this one's
        }
        quarantined, quarantined_bytes = await self._integrity.quarantine.totals()
        status = DaemonStatus(
            version=VERSION,
            pid=os.getpid(),
            started_at=self._started_at,
            cache_dir=str(self._settings.cache_dir),
            socket_dir=str(self._settings.socket_dir),
            models=len(manifests),
            bytes=sum(blobs.values()),
            requests=len(self._warmer.running),
            queued=len(self._queue),
            resident_bytes=await self._resident_total.of(
                {record.path: record for model in manifests for record in model.files}.values()
            ),
            has_token=self._settings.hub_token is not None,
            token_place=self._settings.hub_token_place,
            hub_endpoint=shown_url(self._settings.hub_endpoint),
            watches=dict(Counter(report.state for report in self._watches.reports())),
            problems=await self._monitor.problems(),
            quarantined=quarantined,
            quarantined_bytes=quarantined_bytes,
            hashed_since=self._integrity.scrub.hashed_since,
            has_verity=self._integrity.verity.is_supported,
            processes=len(self._observability.processes),
            fallbacks=dict(self._observability.counts.fallbacks),
        )
        return await self._overview.complete(status, published)

    async def not_warm(self) -> list[NotWarm]:
        """All that somebody wanted or had here and is not warm, and why; newest first."""
        return await self._overview.not_warm(await self._store.published())

    def paths(self, shown: str) -> list[Path]:
        """Paths of the files of a model that is published under a name as shown to people."""
        manifest = self._store.manifest(parse(shown))
        return [self._store.cache.path(record) for record in manifest.files] if manifest else []

    async def _states(self, models: Sequence[tuple[str, Manifest]]) -> list[ModelState]:
        """How these models are, by their keys; looked at together, in two steps of a thread."""
        is_intact, path_text = self._store.cache.is_intact, self._store.cache.path_text
        files = [manifest.files for _, manifest in models]
        intact = await asyncio.to_thread(lambda: [tuple(filter(is_intact, each)) for each in files])
        resident = await self._residency.resident_each(map(path_text, each) for each in files)
        return list(map(self._state, models, intact, resident))

    def _state(
        self,
        model: tuple[str, Manifest],
        intact: tuple[FileRecord, ...],
        resident_bytes: int | None,
    ) -> ModelState:
        key, manifest = model
        pin = self._pins.find(key)
        cached = CachedModel.of(
            manifest,
            intact,
            lambda need: self._store.needed(need) is not None,
            resident_bytes=resident_bytes,
            is_pinned=pin is not None,
            is_locked=pin is not None and pin.is_locked,
            last_used_at=self._uses.last(key) or None,
            pinned_until=None if pin is None else pin.expires_at,
            held_until=self._holds.until(key),
        )
        return ModelState(manifest, cached)


def _batches(published: Sequence[tuple[str, Manifest]]) -> Iterator[Sequence[tuple[str, Manifest]]]:
    """A few models at a time, so that others have their turn in between."""
    for start in range(0, len(published), LOOKED_AT_ONCE):
        yield published[start : start + LOOKED_AT_ONCE]
