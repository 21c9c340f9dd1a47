"""A warm as it is asked for: the source, its dependencies, then reading it into memory."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.amounts import size_text
from craftcache.cache.manifest import manifest_key
from craftcache.errors import NotFound, Unavailable
from craftcache.sources import NO_SELECTION, HubSource, WatchSource, parse
from craftcache.wire import Progress
from craftcached.fetch import Priority
from craftcached.store.manifest_repair import quarantine_manifest
from craftcached.warm.warmed import Warmed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.locked import LockedRevision
    from craftcache.sources import RemoteSource, Selection
    from craftcache.wire import Warm
    from craftcached.eviction.last_use import LastUse
    from craftcached.eviction.pins import Pins
    from craftcached.residency.residency import Residency
    from craftcached.store.store import Store
    from craftcached.warm.warmer import Warmer
    from craftcached.watch import Watches

__all__ = ["Warming"]

log = logging.getLogger("craftcached")


def _unheard(_progress: Progress) -> None:
    """A report that does nothing: nobody is told of the progress."""


class Warming:
    """Carries out warms, and the warm that a load needs; one instance a daemon. Has no state.

    Args:
        store: The published models.
        warmer: Fetches, verifies and publishes Hub and URL sources.
        residency: Reads files into the page cache.
        pins: The pinned models, of which a superseded revision is mended too.
        uses: The time of each model's last use; a warm counts as one.
        watches: Publish the generations of watched directories, which are not fetched.
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
        selection: Selection = NO_SELECTION,
        lock: LockedRevision | None = None,
        for_uid: int | None = None,
        with_needs: bool = False,
    ) -> Warmed:
        """Make files of a source present and published; see Warmer.warm."""
        if not isinstance(source, WatchSource):
            return await self._warmer.warm(
                source,
                names,
                refresh=refresh,
                priority=priority,
                report=report,
                selection=selection,
                lock=lock,
                for_uid=for_uid,
                with_needs=with_needs,
            )
        # A watch has no origin to fetch from: its files are published when the directory changes.
        manifest = await self._warmer.recheck(source, names, report)
        if manifest is None:
            self._watches.take_again(source)
            raise self._watches.absence(source)
        return Warmed(manifest, 0, manifest.size)

    async def mend(self, key: str, manifest: Manifest, filename: str) -> None:
        """Have a file of a published model, and its index, be what it was, from its origin.

        A superseded revision, which nobody has asked for, is not fetched again: it is removed.

        Args:
            key: Key of the model's manifest.
            manifest: The manifest.
            filename: Name of the file.

        Raises:
            CraftcacheError: See Warmer.warm. NotFound also where the origin is not known, and of
                a superseded revision.
        """
        source = parse(manifest.source)
        if manifest_key(source) != key:
            raise NotFound(
                "its address had a part that is not kept, so it cannot be fetched anew",
                source=manifest.source,
                hint="Warm it again by its whole address",
            )
        if manifest.superseded and self._pins.find(key) is None:
            await self._check_superseded(source, key, filename)
            return
        await self._publish_anew(source, (filename,), as_need=manifest.needed_only)
        now = self._store.manifest(source)
        record = now.file(filename) if now is not None else None
        if record is None or not self._store.cache.is_intact(record):
            raise Unavailable(
                f"{filename} was brought anew, and is gone or touched again",
                source=source.shown,
                hint="See who changes files in the cache",
            )

    async def _check_superseded(self, source: RemoteSource, key: str, filename: str) -> None:
        """Remove a superseded revision unless its file is right by now, as the current one's."""
        if await self._store.recheck(source, (filename,)) is not None:
            return
        await self._store.remove(key)
        await self._uses.forget(key)
        raise _not_fetched_anew(source)

    async def publish_anew(
        self,
        source: RemoteSource,
        filenames: tuple[str, ...],
        *,
        as_need: bool = False,
        superseded: bool = False,
    ) -> None:
        """Publish files of a source whose manifest cannot be read, as what they were before.

        A superseded revision stays one, of what is in the cache; see mend.

        Args:
            source: The source.
            filenames: Names of its files.
            as_need: Whether it was cached as a dependency only.
            superseded: Whether it was a superseded revision.

        Raises:
            CraftcacheError: See mend.
        """
        key = manifest_key(source)
        is_left_alone = superseded and self._pins.find(key) is None
        if not is_left_alone or not isinstance(source, HubSource):
            await self._publish_anew(source, filenames, as_need=as_need)
        elif not await self._warmer.publish_superseded(source, filenames):
            await quarantine_manifest(self._store, key)
            await self._uses.forget(key)
            raise _not_fetched_anew(source)

    async def _publish_anew(
        self, source: RemoteSource, filenames: tuple[str, ...], *, as_need: bool
    ) -> None:
        """Publish files of a source at the revision that it has, or anew where it has none."""
        if isinstance(source, WatchSource):
            await self.ensure(source, filenames, Priority.BACKGROUND, _unheard)
            return
        await self._warmer.mend(source, filenames, as_need=as_need, report=_unheard)

    async def warm(
        self, request: Warm, report: Callable[[Progress], None], *, for_uid: int | None = None
    ) -> Warmed:
        """Warm a source at its newest revision, then its dependencies.

        Returns:
            What is published of the source; it may have been removed again by now.

        Raises:
            CraftcacheError: See Warmer.warm. If a dependency cannot be warmed, the source itself
                is published all the same.
        """
        source, options = request.source, request.options
        # A lock names what the model needs as models of their own, at revisions of theirs.
        is_alone = options.pair_only or options.lock is not None
        warmed = await self.ensure(
            source,
            request.names,
            Priority.BACKGROUND,
            report,
            refresh=options.refresh,
            selection=options.selection,
            lock=options.lock,
            for_uid=for_uid,
            with_needs=not is_alone,
        )
        self._uses.note(manifest_key(source))
        try:
            if not is_alone and (options.refresh or not self._has_needs(warmed.manifest)):
                not_refreshed = await self._warm_needs(source, warmed.manifest, report, for_uid)
                warmed = replace(warmed, not_refreshed=not_refreshed)
        finally:
            # Only once the new dependencies are published: they may depend on the old ones.
            if warmed.previous is not None:
                await self._drop_unneeded(warmed.previous)
        if options.resident:
            names = request.names
            if options.selection:
                names = tuple(filter(options.selection.has, map(_name, warmed.manifest.files)))
            records = warmed.manifest.select(source, names) or ()
            resident = await self._read_into_memory(source, records, report)
            warmed = replace(warmed, resident_bytes=resident)
        return warmed

    def _has_needs(self, manifest: Manifest) -> bool:
        return all(self._store.needed(need) is not None for need in manifest.needs)

    async def _warm_needs(
        self,
        source: RemoteSource,
        manifest: Manifest,
        report: Callable[[Progress], None],
        for_uid: int | None,
    ) -> tuple[str, ...]:
        """Warm a model's dependencies; returns the names of those that could not be refreshed."""
        not_refreshed = []
        try:
            brought = await self._warmer.warm_needs(manifest, report=report, for_uid=for_uid)
            for met in brought:
                needed, failure = met.manifest, met.not_refreshed
                log.info("%s needs %s at %s", manifest.source, needed.source, needed.revision)
                if failure is not None:
                    not_refreshed.append(needed.source)
                    log.warning("%s is not refreshed: %s", needed.source, failure.message)
                if met.superseded is not None:
                    await self._drop_unneeded(met.superseded)
        finally:
            # Removed meanwhile. Dependencies that came after the removal have no other user.
            if self._store.manifest(source) is None:
                await self._drop_unneeded(manifest)
        for unmet in manifest.unmet:
            log.info("%s needs %s, which cannot be warmed", manifest.source, unmet.what)
        return tuple(not_refreshed)

    async def _drop_unneeded(self, past: Manifest) -> None:
        """Remove the dependencies that only a removed model, or a replaced revision, had."""
        removed = await self._store.remove_unneeded(past)
        for gone in removed.keys:
            await self._uses.forget(gone)
        if removed.keys:
            log.info("removed what %s needed: %s freed", past.source, size_text(removed.freed))

    async def _read_into_memory(
        self,
        source: RemoteSource,
        records: Sequence[FileRecord],
        report: Callable[[Progress], None],
    ) -> int | None:
        """Read files into the page cache; returns how many of their bytes are there now."""
        for record in records:
            filename, size = record.filename, record.size

            def tell(done: int, filename: str = filename, size: int = size) -> None:
                report(Progress(source.shown, filename, done, size, "reading"))

            await self._residency.bring(self._store.cache.path(record), tell)
        found = await self._residency.resident(map(self._store.cache.path, records))
        if found is not None:
            size = sum(record.size for record in records)
            of = f"{size_text(found)} of {size_text(size)}"
            log.info("%s: %s in memory", source.shown, of)
        return found


def _not_fetched_anew(source: RemoteSource) -> NotFound:
    return NotFound(
        "a superseded revision is not fetched anew; it is removed",
        source=source.shown,
        hint="Warm it by its commit if it is wanted",
    )


def _name(record: FileRecord) -> str:
    return record.filename
