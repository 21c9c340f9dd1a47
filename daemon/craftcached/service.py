"""What the daemon does, whichever socket it is asked on."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.cache.manifest import manifest_key
from craftcache.checkpoint.filenames import check_checkpoint
from craftcache.dependencies import DependencyState
from craftcache.errors import InvalidSource, NotFound, PolicyDenied, Unavailable
from craftcache.sources import HubSource, WatchSource, check_filename, parse, wanted_files
from craftcache.version import VERSION
from craftcache.wire import Progress

from .fetch import Priority
from .status import ModelState, Status
from .store.scrub import Scrubber
from .warm.queue import WarmQueue
from .warm.warmer import Warmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.sources import RemoteSource

    from .database import Database, Pin, WarmJob
    from .events import Events
    from .eviction.evictor import Eviction, Evictor
    from .eviction.last_use import LastUse
    from .eviction.pins import Pins
    from .residency.residency import Residency
    from .settings import Settings
    from .store.opener import BlobOpener, OpenedModel
    from .store.scrub import Verdict
    from .store.store import Store
    from .warm.queue import QueuedWarm
    from .warm.warmer import Warmer
    from .watch import Watches

__all__ = ["Service"]

log = logging.getLogger("craftcached")

OPEN_ATTEMPTS = 4
"""How often a model may be removed between being brought and being opened."""


class Service:
    """The daemon's capabilities, decided here and nowhere else.

    Args:
        settings: In force.
        store: What is published.
        warmer: What makes it so.
        records: What was promised.
        handout: Opens what is published.
        residency: Brings it into memory.
        pins: What stays.
        uses: What was used when.
        evictor: What makes room.
        watches: See the attribute.
        events: See the attribute.

    Attributes:
        watches: What is brought from directories of this node.
        events: What happens.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        warmer: Warmer,
        records: Database,
        handout: BlobOpener,
        residency: Residency,
        pins: Pins,
        uses: LastUse,
        evictor: Evictor,
        watches: Watches,
        events: Events,
    ) -> None:
        self._settings = settings
        self._store = store
        self._warmer = warmer
        self._handout = handout
        self._residency = residency
        self._pins = pins
        self._uses = uses
        self._evictor = evictor
        self.watches = watches
        self.events = events
        self._started_at = time.time()
        self._promises = WarmQueue(records, self._warm_promised)
        self._verifier = Scrubber(store)

    async def resume(self) -> None:
        """Take up the warms that were promised before the last stop."""
        await self._promises.resume()

    async def close(self) -> None:
        """Stop the promised warms at a point from which the next start goes on."""
        await self._promises.close()
        self._verifier.close()

    async def open(
        self,
        text: str,
        filenames: Sequence[str],
        report: Callable[[Progress], None],
    ) -> OpenedModel:
        """Open the files of a source, bringing them first where they are missing.

        Args:
            text: The source.
            filenames: Of it; none means all that it stands for.
            report: Called with progress; must not block.

        Raises:
            NotACheckpoint: One of them is none by its name.
            CraftcacheError: See Warmer.ensure.
        """
        source, names = self._parse(text, filenames)
        for name in names:
            check_checkpoint(name, source=source.shown)
        for _ in range(OPEN_ATTEMPTS):
            if opened := self.open_nowait(text, filenames):
                return opened
            await self._ensure(source, names, Priority.WAITED_FOR, report)
        raise Unavailable(
            "it is removed as often as it is brought",
            source=source.shown,
            hint="See who removes it; the daemon's log says when",
        )

    def open_nowait(self, text: str, filenames: Sequence[str]) -> OpenedModel | None:
        """Open the files of a source if all are published and untouched; None otherwise."""
        source, names = self._parse(text, filenames)
        manifest = self._store.manifest(source)
        records = manifest.select(source, names) if manifest else None
        if manifest is None or records is None or manifest.needed_only:
            return None
        opened = self._handout.open(manifest, records)
        if opened is not None:
            self._uses.note(manifest_key(source))
        return opened

    async def resolve(
        self, text: str, filename: str, report: Callable[[Progress], None]
    ) -> tuple[str, os.stat_result]:
        """Where a file stands below the cache directory, as huggingface_hub would name it."""
        source, names = self._parse(text, [filename])
        warmed = await self._ensure(source, names, Priority.WAITED_FOR, report)
        record = warmed.manifest.file(names[0])
        if record is None:
            raise NotFound(f"no file {names[0]}", source=source.shown, hint="Try again")
        path = self._store.cache.path(record)
        if isinstance(source, HubSource):
            tree = self._store.cache.hub_tree(source.repo_id)
            path = tree.pointer(warmed.manifest.revision, record.filename)
        return self._store.cache.relative(path), path.stat()

    async def warm(
        self,
        text: str,
        filenames: Sequence[str],
        report: Callable[[Progress], None],
        *,
        resident: bool = False,
        pair_only: bool = False,
    ) -> Warmed:
        """Bring a source to its newest revision, and then what it needs.

        Args:
            text: The source.
            filenames: Of it; none means all that it stands for.
            report: Called with progress; must not block.
            resident: Whether to bring the files into memory as well, as far as there is room.
            pair_only: Whether to leave out what the source needs.

        Raises:
            CraftcacheError: See Warmer.ensure. Where something that it needs is missing, the source
                itself is published all the same.
        """
        source, names = self._parse(text, filenames)
        started = time.monotonic()
        warmed = await self._ensure(source, names, Priority.BACKGROUND, report, refresh=True)
        log.info(
            "warmed %s at %s: %d bytes fetched, %d reused, %.2f s",
            source.shown,
            warmed.manifest.revision,
            warmed.bytes_fetched,
            warmed.bytes_reused,
            time.monotonic() - started,
        )
        self._uses.note(manifest_key(source))
        if not pair_only:
            await self._bring_needs(source, warmed.manifest, report)
        if resident:
            records = warmed.manifest.select(source, names) or ()
            warmed = replace(warmed, resident_bytes=await self._bring_in(source, records, report))
        return warmed

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

    async def _ensure(
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
            raise self.watches.absence(source)
        return Warmed(manifest, 0, manifest.size)

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
        found = await self._resident(records)
        if found is not None:
            size = sum(record.size for record in records)
            log.info("%s: %d of %d bytes in memory", source.shown, found, size)
        return found

    async def queue_warm(
        self,
        texts: Sequence[str],
        filenames: Sequence[str],
        *,
        resident: bool = False,
        pair_only: bool = False,
    ) -> list[WarmJob]:
        """Promise warms; they outlive the request and a restart of the daemon.

        Raises:
            InvalidSource: A source is malformed or is not one that is fetched; none is promised.
            PolicyDenied: This node does not fetch one of them; likewise.
            Unavailable: Too many are promised already; likewise.
        """
        for text in texts:
            source, _ = self._parse(text, filenames)
            if isinstance(source, WatchSource):
                raise InvalidSource(
                    "a watch brings its files by itself",
                    source=source.shown,
                    hint="Queue warms of Hub ids and URLs",
                )
            self._warmer.check_allowed(source)
        return await self._promises.make(
            texts, tuple(filenames), resident=resident, pair_only=pair_only
        )

    async def queue_needs(self, generation: Manifest) -> None:
        """Promise what a generation needs, unless all of it is here."""
        if all(self._store.needed(need) for need in generation.needs):
            return
        try:
            await self._promises.make([generation.source], ())
        except Unavailable as error:  # the generation is served all the same
            log.warning("what %s needs is not fetched: %s", generation.source, error)

    def queued(self) -> list[QueuedWarm]:
        """The promised warms that are not done, oldest first."""
        return self._promises.all()

    async def withdraw_warm(self, number: int) -> WarmJob:
        """Forget a promised warm; see Promises.withdraw."""
        return await self._promises.withdraw(number)

    async def remove(self, text: str) -> int:
        """Remove a model; returns the bytes freed.

        Raises:
            NotFound: It is not in the cache.
            PolicyDenied: It is pinned or watched.
        """
        source = parse(text)
        key, _ = self._published(source)
        await self._pins.check_unpinned(source)
        if isinstance(source, WatchSource) and self.watches.is_watched(source):
            raise PolicyDenied(
                "it is watched",
                source=source.shown,
                hint=f"craftcache watch rm {source.name}",
            )
        removed = await self._store.remove(key, self._pins.keys)
        for gone in removed.keys:
            await self._uses.forget(gone)
        log.info("removed %s: %d bytes freed", source.shown, removed.freed)
        return removed.freed

    async def pin(self, text: str, *, lock: bool) -> Pin:
        """Keep a model from being evicted and removed; see Pins.pin."""
        return await self._pins.pin(parse(text), lock=lock)

    async def unpin(self, text: str) -> None:
        """Let it go again; see Pins.unpin."""
        await self._pins.unpin(parse(text))

    async def evict(self, wanted: int | None, *, dry_run: bool) -> Eviction:
        """Make room; see Evictor.evict."""
        return await self._evictor.evict(wanted, dry_run=dry_run)

    async def verify(self, texts: Sequence[str]) -> list[Verdict]:
        """Hash again all files of these models, or of all models; see Verifier.

        Raises:
            NotFound: One of them is not in the cache; none was looked at.
        """
        if texts:
            models = [self._published(parse(text))[1] for text in texts]
        else:
            models = await self._store.manifests()
        return await self._verifier.verify(models)

    async def models(self) -> list[ModelState]:
        """All published models, by source."""
        return [await self._state(key, model) for key, model in await self._store.published()]

    async def model(self, text: str) -> ModelState:
        """One published model.

        Raises:
            NotFound: It is not in the cache.
        """
        return await self._state(*self._published(parse(text)))

    def progress(self) -> list[Progress]:
        """How far each source has come that is being worked on."""
        return self._warmer.progress()

    async def status(self) -> Status:
        """How the daemon is at this moment."""
        manifests = await self._store.manifests()
        blobs = {record.path: record.size for manifest in manifests for record in manifest.files}
        return Status(
            version=VERSION,
            pid=os.getpid(),
            started_at=self._started_at,
            cache_dir=str(self._settings.cache_dir),
            socket_dir=str(self._settings.socket_dir),
            models=len(manifests),
            bytes=sum(blobs.values()),
            requests=self._warmer.running,
            queued=len(self._promises),
            resident_bytes=await self._resident(
                {record.path: record for model in manifests for record in model.files}.values()
            ),
            has_token=self._settings.hub_token is not None,
            watches=dict(Counter(report.state for report in self.watches.reports())),
        )

    def _published(self, source: RemoteSource) -> tuple[str, Manifest]:
        """The key and the manifest of a published source."""
        manifest = self._store.manifest(source)
        if manifest is None:
            raise NotFound(
                "not in the cache", source=source.shown, hint=f"craftcache warm {source.shown}"
            )
        return manifest_key(source), manifest

    async def _state(self, key: str, manifest: Manifest) -> ModelState:
        resident = await self._resident(manifest.files)
        needs = tuple(
            DependencyState(need.parsed.shown, need.why, self._store.needed(need) is not None)
            for need in manifest.needs
        )
        is_intact = self._store.cache.is_intact
        files = await asyncio.to_thread(lambda: tuple(filter(is_intact, manifest.files)))
        return ModelState(manifest, files, resident, self._pins.find(key), needs)

    async def _resident(self, records: Iterable[FileRecord]) -> int | None:
        return await self._residency.resident(map(self._store.cache.path, records))

    def _parse(self, text: str, filenames: Sequence[str]) -> tuple[RemoteSource, tuple[str, ...]]:
        source = parse(text)
        for filename in filenames:
            check_filename(filename, source=source.shown)
        return source, wanted_files(source, filenames)

    async def _warm_promised(self, job: WarmJob) -> None:
        await self.warm(
            job.source,
            job.filenames,
            lambda _: None,
            resident=job.resident,
            pair_only=job.pair_only,
        )
