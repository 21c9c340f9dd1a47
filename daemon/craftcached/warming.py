"""Having sources published: as they are or at their newest, with what they need, and in memory."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.cache.manifest import manifest_key
from craftcache.sources import WatchSource
from craftcache.wire import Progress

from .fetch import Priority
from .warm.warmer import Warmed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.sources import RemoteSource
    from craftcache.wire import Warm

    from .eviction.last_use import LastUse
    from .eviction.pins import Pins
    from .residency.residency import Residency
    from .store.store import Store
    from .warm.warmer import Warmer
    from .watch import Watches

__all__ = ["Warming"]

log = logging.getLogger("craftcached")


class Warming:
    """Brings what is asked for; one instance a daemon.

    Args:
        store: What is published.
        warmer: Publishes what is fetched.
        residency: Brings files into memory.
        pins: Keep what others came to need.
        uses: Are told what was warmed.
        watches: Publish what is not fetched.
    """

    def __init__(
        self,
        *,
        store: Store,
        warmer: Warmer,
        residency: Residency,
        pins: Pins,
        uses: LastUse,
        watches: Watches,
    ) -> None:
        self._store = store
        self._warmer = warmer
        self._residency = residency
        self._pins = pins
        self._uses = uses
        self._watches = watches

    async def ensure(
        self,
        source: RemoteSource,
        names: tuple[str, ...],
        priority: Priority,
        report: Callable[[Progress], None],
        *,
        refresh: bool = False,
    ) -> Warmed:
        """Have files of a source published; see Warmer.warm. Watches bring theirs themselves."""
        if not isinstance(source, WatchSource):
            return await self._warmer.warm(
                source, names, refresh=refresh, priority=priority, report=report
            )
        manifest = await self._warmer.recheck(source, names, report)
        if manifest is None:
            self._watches.take_again(source)
            raise self._watches.absence(source)
        return Warmed(manifest, 0, manifest.size)

    async def warm(self, request: Warm, report: Callable[[Progress], None]) -> Warmed:
        """Bring a source to its newest revision, and then what it needs.

        Returns:
            What is published of it, though it may be removed again by now.

        Raises:
            CraftcacheError: See Warmer.warm. Where something that it needs is missing, the source
                itself is published all the same.
        """
        source, options = request.source, request.options
        warmed = await self.ensure(
            source, request.names, Priority.BACKGROUND, report, refresh=options.refresh
        )
        self._uses.note(manifest_key(source))
        try:
            if not options.pair_only and (options.refresh or not self._has_needs(warmed.manifest)):
                not_refreshed = await self._bring_needs(source, warmed.manifest, report)
                warmed = replace(warmed, not_refreshed=not_refreshed)
        finally:
            # After what is needed now has come: some of that may need it in turn.
            if warmed.superseded is not None:
                await self._drop_unneeded(warmed.superseded)
        if options.resident:
            records = warmed.manifest.select(source, request.names) or ()
            resident = await self._bring_in(source, records, report)
            warmed = replace(warmed, resident_bytes=resident)
        return warmed

    def _has_needs(self, manifest: Manifest) -> bool:
        return all(self._store.needed(need) is not None for need in manifest.needs)

    async def _bring_needs(
        self, source: RemoteSource, manifest: Manifest, report: Callable[[Progress], None]
    ) -> tuple[str, ...]:
        """Make present what a model needs; returns what of it could not be refreshed."""
        not_refreshed = []
        try:
            for met in await self._warmer.warm_needs(manifest, report=report):
                needed, failure = met.manifest, met.not_refreshed
                log.info("%s needs %s at %s", manifest.source, needed.source, needed.revision)
                if failure is not None:
                    not_refreshed.append(needed.source)
                    log.warning("%s is not refreshed: %s", needed.source, failure.message)
                if met.superseded is not None:
                    await self._drop_unneeded(met.superseded)
        finally:
            if self._store.manifest(source) is None:  # removed, and what came after it came for it
                await self._drop_unneeded(manifest)
        for unmet in manifest.unmet:
            log.info("%s needs %s, which cannot be warmed", manifest.source, unmet.what)
        return tuple(not_refreshed)

    async def _drop_unneeded(self, past: Manifest) -> None:
        """Remove what was here for the sake of a model, or of a revision of it, that is gone."""
        removed = await self._store.remove_unneeded(past, self._pins.keys)
        for gone in removed.keys:
            await self._uses.forget(gone)
        if removed.keys:
            log.info("removed what %s needed: %d bytes freed", past.source, removed.freed)

    async def _bring_in(
        self,
        source: RemoteSource,
        records: Sequence[FileRecord],
        report: Callable[[Progress], None],
    ) -> int | None:
        """Bring files into memory; returns how many of their bytes are there now."""
        for record in records:
            filename, size = record.filename, record.size

            def tell(done: int, filename: str = filename, size: int = size) -> None:
                report(Progress(source.shown, filename, done, size, "reading"))

            await self._residency.bring(self._store.cache.path(record), tell)
        found = await self._residency.resident(map(self._store.cache.path, records))
        if found is not None:
            size = sum(record.size for record in records)
            log.info("%s: %d of %d bytes in memory", source.shown, found, size)
        return found
