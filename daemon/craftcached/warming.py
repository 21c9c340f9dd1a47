"""Having sources published: as they are or at their newest, with what they need, and in memory."""

from __future__ import annotations

import logging
import time
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
        """Have files of a source published; see Warmer.ensure. Watches bring theirs themselves."""
        if not isinstance(source, WatchSource):
            return await self._warmer.ensure(
                source, names, refresh=refresh, priority=priority, report=report
            )
        manifest = self._store.intact(source, names)
        if manifest is None:
            raise self._watches.absence(source)
        return Warmed(manifest, 0, manifest.size)

    async def warm(self, request: Warm, report: Callable[[Progress], None]) -> Warmed:
        """Bring a source to its newest revision, and then what it needs.

        Returns:
            What is published of it, though it may be removed again by now.

        Raises:
            CraftcacheError: See Warmer.ensure. Where something that it needs is missing, the source
                itself is published all the same.
        """
        source, options = request.source, request.options
        started = time.monotonic()
        warmed = await self.ensure(
            source, request.names, Priority.BACKGROUND, report, refresh=options.refresh
        )
        log.info(
            "warmed %s at %s: %d bytes fetched, %d reused, %.2f s",
            source.shown,
            warmed.manifest.revision,
            warmed.bytes_fetched,
            warmed.bytes_reused,
            time.monotonic() - started,
        )
        self._uses.note(manifest_key(source))
        if not options.pair_only and (options.refresh or not self._has_needs(warmed.manifest)):
            await self._bring_needs(source, warmed.manifest, report)
        if options.resident:
            records = warmed.manifest.select(source, request.names) or ()
            resident = await self._bring_in(source, records, report)
            warmed = replace(warmed, resident_bytes=resident)
        return warmed

    def _has_needs(self, manifest: Manifest) -> bool:
        return all(self._store.needed(need) is not None for need in manifest.needs)

    async def _bring_needs(
        self, source: RemoteSource, manifest: Manifest, report: Callable[[Progress], None]
    ) -> None:
        try:
            for needed in await self._warmer.ensure_needs(manifest, report=report):
                log.info("%s needs %s at %s", manifest.source, needed.source, needed.revision)
        finally:
            if self._store.manifest(source) is None:  # removed, and what came after it came for it
                await self._store.remove_unneeded(manifest, self._pins.keys)
        for unmet in manifest.unmet:
            log.info("%s needs %s, which cannot be warmed", manifest.source, unmet.what)

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
