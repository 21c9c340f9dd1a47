"""What the daemon does, whichever socket it is asked on."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from craftcache.cache.manifest import manifest_key
from craftcache.cache.opened import FileInfo, OpenFile
from craftcache.checkpoint.filenames import check_checkpoint
from craftcache.daemon.planning import PlannedRoom, WarmPlan
from craftcache.errors import CraftcacheError, InvalidSource, NotFound, PolicyDenied, Unavailable
from craftcache.full_disk import free_bytes
from craftcache.model_filter import ModelFilter, ModelTraits, are_met
from craftcache.sources import FILENAMES, HubSource, WatchSource, parse
from craftcache.version import VERSION
from craftcache.wire import (
    CachedModel,
    DaemonStatus,
    Follow,
    Generation,
    Identified,
    Identify,
    Load,
    Loaded,
    Models,
    Resolve,
    Resolved,
    Status,
    Warm,
    WarmBatch,
    WarmedBatch,
    WarmedModel,
    first_page,
)

from .eviction.policy import used_bytes
from .fetch import Priority
from .scrub import Integrity
from .scrub.examiner import PublishedModel
from .status import ModelState
from .store.removal import Removed
from .warm.queue import WarmQueue
from .warming import Warming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.daemon.administration import Eviction, Pruning, QueuedWarm
    from craftcache.sources import RemoteSource
    from craftcache.wire import ModelsPage, Progress, Request

    from .database import Database, Pin
    from .directory_monitor import DirectoryMonitor
    from .events import Events
    from .eviction.evictor import Evictor
    from .eviction.last_use import LastUse
    from .eviction.pins import Pins
    from .eviction.prune import Pruner
    from .fetch.measured_rate import MeasuredFetcher
    from .residency.residency import Residency
    from .settings import Settings
    from .store.opener import BlobOpener
    from .store.store import Store
    from .warm.bundles import BundleImporter
    from .warm.planner import Planner
    from .warm.warmer import Warmed, Warmer
    from .watch import Watches

__all__ = ["Service"]

log = logging.getLogger("craftcached")

AnswerT = TypeVar("AnswerT")

OPEN_ATTEMPTS = 4
"""Times that a load warms and opens a model that is removed in between each time."""


class Service:
    """Everything the daemon can be asked for, decided here and nowhere else.

    Args:
        settings: The settings the daemon runs with.
        store: The published models.
        warmer: Fetches, verifies and publishes sources.
        records: The database, which keeps the queue of warms.
        handout: Opens published files for workers.
        residency: Reads files into the page cache.
        pins: The models that are neither evicted nor removed.
        uses: The time at which each model was last used.
        evictor: Frees space in the cache.
        watches: The watched directories, whose generations are published.
        events: The event stream that subscribers of the admin socket follow.
        monitor: Reports which of the daemon's own directories and sockets are gone.
        bundles: Imports models that come in a file.
        pruner: Removes models that were chosen by filters.
        planner: Says what a warm would bring.
        fetcher: Knows how fast this node fetches.

    Attributes:
        watches: The watched directories, whose generations are published.
        events: The event stream that subscribers of the admin socket follow.
        bundles: Imports models that come in a file.
        integrity: Keeps what is cached what it was; the caller enters and leaves it.
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
        monitor: DirectoryMonitor,
        bundles: BundleImporter,
        pruner: Pruner,
        planner: Planner,
        fetcher: MeasuredFetcher,
    ) -> None:
        self._settings = settings
        self._store = store
        self._warmer = warmer
        self._handout = handout
        self._residency = residency
        self._pins = pins
        self._uses = uses
        self._evictor = evictor
        self._pruner = pruner
        self._planner = planner
        self._fetcher = fetcher
        self._monitor = monitor
        self.watches = watches
        self.events = events
        self.bundles = bundles
        self._started_at = time.time()
        self._warming = Warming(
            store=store, warmer=warmer, residency=residency, pins=pins, uses=uses, watches=watches
        )
        self._queue = WarmQueue(records, self._warm_queued)
        self.integrity = Integrity(
            settings=settings,
            store=store,
            records=records,
            mender=self._warming,
            events=events,
            is_busy=lambda: warmer.running > 0,
        )

    async def resume(self) -> None:
        """Take up the warms that were queued before the last stop."""
        await self._queue.resume()

    async def close(self) -> None:
        """Stop the queued warms at a point from which the next start goes on."""
        await self._queue.close()

    def handle_nowait(self, request: Request[AnswerT], peer: object) -> AnswerT | None:  # noqa: ARG002  # whoever asks
        """The answer if it is at hand: see Handler."""
        if not isinstance(request, Load):
            return None
        answer: Any = self._open(request)
        return cast("AnswerT | None", answer)

    async def handle(
        self,
        request: Request[AnswerT],
        peer: object,  # noqa: ARG002  # whoever asks
        report: Callable[[Progress], None],
    ) -> AnswerT:
        """Answer a request; see Handler, and the method of each kind of request.

        Raises:
            CraftcacheError: Any of the tree.
        """
        answer: Any
        match request:
            case Load():
                answer = await self._load(request, report)
            case Resolve():
                answer = await self._resolve(request, report)
            case Warm():
                answer = _warmed_model(await self.warm(request, report))
            case WarmBatch():
                answer = await self._warm_all(request, report)
            case Status():
                answer = await self.status()
            case Models():
                answer = await self._page(request)
            case Identify():
                answer = Identified(await self.watches.find(request.device, request.inode) or "")
            case Follow():
                served = await self.watches.wait_other(request.name, request.after)
                answer = _generation(request.name, served)
        return cast("AnswerT", answer)

    async def _load(self, request: Load, report: Callable[[Progress], None]) -> Loaded:
        """Open the files of a source; those that are missing are warmed first.

        Raises:
            NotACheckpoint: The name of one of them is not that of a checkpoint.
            CraftcacheError: See Warmer.warm.
        """
        source = request.source
        for name in request.names:
            check_checkpoint(name, source=source.shown)
        for _ in range(OPEN_ATTEMPTS):
            if loaded := self._open(request):
                return loaded
            await self._warming.ensure(source, request.names, Priority.WAITED_FOR, report)
        raise Unavailable(
            "it is removed as often as it is brought",
            source=source.shown,
            hint="See who removes it; the daemon's log says when",
        )

    def _open(self, request: Load) -> Loaded | None:
        """Open the files of a source if all are published and untouched; None otherwise."""
        source = request.source
        manifest = self._store.trusted(source)
        records = manifest.select(source, request.names) if manifest else None
        if manifest is None or records is None or not manifest.is_by_name:
            return None
        opened = self._handout.open(manifest, records)
        if opened is None:
            return None
        self._uses.note(manifest_key(source))
        files = zip(map(FileInfo.recorded, records), opened.blobs, opened.indexes, strict=True)
        return Loaded(
            source.shown,
            manifest.revision,
            tuple(OpenFile(info, blob, index) for info, blob, index in files),
        )

    async def _resolve(self, request: Resolve, report: Callable[[Progress], None]) -> Resolved:
        """Where a file stands below the cache directory, as huggingface_hub would name it."""
        source, name = request.source, request.name
        warmed = await self._warming.ensure(source, (name,), Priority.WAITED_FOR, report)
        record = warmed.manifest.file(name)
        if record is None:
            raise NotFound(f"no file {name}", source=source.shown, hint="Try again")
        path = self._store.cache.path(record)
        if isinstance(source, HubSource):
            tree = self._store.cache.hub_tree(source.repo_id)
            path = tree.pointer(warmed.manifest.revision, record.filename)
        status = path.stat()
        return Resolved(self._store.cache.relative(path), status.st_dev, status.st_ino)

    async def warm(self, request: Warm, report: Callable[[Progress], None]) -> Warmed:
        """Warm a source at its newest revision, then its dependencies; see Warming.warm."""
        return await self._warming.warm(request, report)

    async def _warm_all(
        self, request: WarmBatch, report: Callable[[Progress], None]
    ) -> WarmedBatch:
        """Do all warms at once; the answer has an error in the place of each that failed."""

        async def one(warm: Warm) -> WarmedModel | CraftcacheError:
            try:
                return _warmed_model(await self.warm(warm, report))
            except CraftcacheError as error:
                return error

        return WarmedBatch(tuple(await asyncio.gather(*map(one, request.warms))))

    async def _page(self, request: Models) -> ModelsPage:
        """The models whose source sorts after that of the request."""
        states = await self.models()
        return first_page(state.model for state in states if state.model.source > request.after)

    async def queue(self, warms: Sequence[Warm]) -> list[QueuedWarm]:
        """Queue warms; they outlive the request and a restart of the daemon.

        If it raises, none of them was queued.

        Raises:
            InvalidSource: One of the sources is a watch, which is not fetched.
            PolicyDenied: The settings do not allow one of the sources.
            Unavailable: The queue is full.
        """
        for warm in warms:
            if isinstance(warm.source, WatchSource):
                raise InvalidSource(
                    "a watch brings its files by itself",
                    source=warm.source.shown,
                    hint="Queue warms of Hub ids and URLs",
                )
            self._warmer.check_allowed(warm.source)
        return await self._queue.add(warms)

    async def queue_needs(self, generation: Manifest) -> None:
        """Queue a warm of a generation's dependencies, unless all of them are cached."""
        if all(self._store.needed(need) for need in generation.needs):
            return
        try:
            await self._queue.add([Warm(parse(generation.source))])
        except Unavailable as error:  # the generation is served all the same
            log.warning("what %s needs is not fetched: %s", generation.source, error)

    async def plan(self, warms: Sequence[Warm]) -> WarmPlan:
        """What these warms would take; see Planner.plan."""
        models = tuple(await self._planner.plan(warms))
        plan = WarmPlan(models, await self._room(), self._fetcher.bytes_per_second)
        lacking = [plan.fetch_bytes - plan.room.free_bytes]
        if plan.room.max_bytes > 0:
            lacking.append(plan.room.used_bytes + plan.fetch_bytes - plan.room.max_bytes)
        wanted = max(lacking)
        if not plan.fetch_bytes or wanted <= 0:
            return plan
        eviction = await self._evictor.evict(wanted, dry_run=True)
        room = replace(
            plan.room,
            evicted=eviction.removed,
            freed_bytes=eviction.freed_bytes,
            missing_bytes=eviction.missing_bytes,
        )
        return replace(plan, room=room)

    async def _room(self) -> PlannedRoom:
        """The room of the cache as it is."""
        free = await asyncio.to_thread(free_bytes, self._store.cache.staging)
        used = used_bytes(await self._evictor.survey())
        return PlannedRoom(free, used, self._evictor.max_bytes, (), 0, 0)

    def queued(self) -> list[QueuedWarm]:
        """The queued warms that are not done, oldest first."""
        return self._queue.all()

    async def withdraw_warm(self, number: int) -> QueuedWarm:
        """Cancel a queued warm; see WarmQueue.withdraw."""
        return await self._queue.withdraw(number)

    async def remove(self, text: str) -> int:
        """Remove a model; returns the bytes freed.

        Raises:
            NotFound: It is not in the cache.
            PolicyDenied: It is pinned or watched.
        """
        source = parse(text)
        self.manifest(source)
        key = manifest_key(source)
        await self._pins.check_unpinned(source)
        if isinstance(source, WatchSource) and self.watches.is_watched(source):
            raise PolicyDenied(
                "it is watched",
                source=source.shown,
                hint=f"craftcache watch rm {source.name}",
            )
        removed = await self._store.remove(key, self._pins.keys)
        removed += await self._remove_superseded(source)
        for gone in removed.keys:
            await self._uses.forget(gone)
        log.info("removed %s: %d bytes freed", source.shown, removed.freed)
        return removed.freed

    async def _remove_superseded(self, source: RemoteSource) -> Removed:
        """Remove the earlier revisions that a removed source left, unless they are pinned."""
        removed = Removed()
        if not isinstance(source, HubSource) or source.is_pinned:
            return removed
        for key, manifest in await self._store.published():
            earlier = HubSource(source.repo_id, manifest.revision)
            if manifest.superseded and key == manifest_key(earlier) and not self._pins.find(key):
                removed += await self._store.remove(key, self._pins.keys)
        return removed

    async def pin(self, text: str, *, lock: bool) -> Pin:
        """Keep a model from being evicted and removed; see Pins.pin."""
        return await self._pins.pin(parse(text), lock=lock)

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
            # A watch keeps as many of its generations as its rule says.
            if manifest.watched is None and are_met(conditions, self._traits(key, manifest), now)
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

    async def verify(self, texts: Sequence[str]) -> int:
        """Have all files of these models hashed again, or with no names of all models.

        Returns:
            The number of the verification; see Verifications.

        Raises:
            NotFound: One of them is not in the cache; no file is hashed.
        """
        sources = [parse(text) for text in texts]
        if sources:
            models = [(manifest_key(source), self.manifest(source)) for source in sources]
        else:
            models = await self._store.published()
        return self.integrity.verifications.start(
            [PublishedModel(*model) for model in models], [source.shown for source in sources]
        )

    async def models(self) -> list[ModelState]:
        """All published models, by source."""
        return [await self._state(key, model) for key, model in await self._store.published()]

    async def model(self, text: str) -> ModelState:
        """One published model.

        Raises:
            NotFound: It is not in the cache.
        """
        source = parse(text)
        return await self._state(manifest_key(source), self.manifest(source))

    def progress(self) -> list[Progress]:
        """The progress of each source that is being warmed."""
        return self._warmer.progress()

    async def status(self) -> DaemonStatus:
        """The daemon's state at this moment; sizes are in bytes."""
        manifests = await self._store.manifests()
        blobs = {record.path: record.size for manifest in manifests for record in manifest.files}
        quarantined, quarantined_bytes = await self.integrity.quarantine.totals()
        return DaemonStatus(
            version=VERSION,
            pid=os.getpid(),
            started_at=self._started_at,
            cache_dir=str(self._settings.cache_dir),
            socket_dir=str(self._settings.socket_dir),
            models=len(manifests),
            bytes=sum(blobs.values()),
            requests=self._warmer.running,
            queued=len(self._queue),
            resident_bytes=await self._resident(
                {record.path: record for model in manifests for record in model.files}.values()
            ),
            has_token=self._settings.hub_token is not None,
            watches=dict(Counter(report.state for report in self.watches.reports())),
            problems=await self._monitor.problems(),
            quarantined=quarantined,
            quarantined_bytes=quarantined_bytes,
            hashed_since=self.integrity.scrub.hashed_since,
            has_verity=self.integrity.verity.is_supported,
        )

    def manifest(self, source: RemoteSource) -> Manifest:
        """The manifest of a published source.

        Raises:
            NotFound: It is not in the cache.
        """
        manifest = self._store.manifest(source)
        if manifest is None:
            raise NotFound(
                "not in the cache", source=source.shown, hint=f"craftcache warm {source.shown}"
            )
        return manifest

    async def _state(self, key: str, manifest: Manifest) -> ModelState:
        is_intact = self._store.cache.is_intact
        intact = await asyncio.to_thread(lambda: tuple(filter(is_intact, manifest.files)))
        pin = self._pins.find(key)
        model = CachedModel.of(
            manifest,
            intact,
            lambda need: self._store.needed(need) is not None,
            resident_bytes=await self._resident(manifest.files),
            is_pinned=pin is not None,
            is_locked=pin is not None and pin.is_locked,
            last_used_at=self._uses.last(key) or None,
        )
        return ModelState(manifest, model)

    async def _resident(self, records: Iterable[FileRecord]) -> int | None:
        return await self._residency.resident(map(self._store.cache.path, records))

    async def _warm_queued(self, warm: Warm) -> None:
        await self.warm(warm, lambda _: None)


def _warmed_model(warmed: Warmed) -> WarmedModel:
    return WarmedModel(
        warmed.manifest.source,
        warmed.manifest.revision,
        warmed.bytes_fetched,
        warmed.bytes_reused,
        resident_bytes=warmed.resident_bytes,
        not_refreshed=warmed.not_refreshed,
    )


def _generation(name: str, served: Manifest) -> Generation:
    if served.watched is None:
        raise CraftcacheError("the cache says not what was watched", source=served.source)
    records = {part: served.file(filename) for part, filename in FILENAMES.items()}
    digests = {part: record.sha256 for part, record in records.items() if record is not None}
    return Generation(name, served.watched.generation, digests, Path(served.watched.directory))
