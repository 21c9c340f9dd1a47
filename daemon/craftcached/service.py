"""What the daemon does, whichever socket it is asked on."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from craftcache.cache.directory import OWNER_PREFIX, CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.cache.opened import FileInfo, OpenFile
from craftcache.checkpoint.filenames import check_checkpoint
from craftcache.daemon.planning import PlannedRoom, WarmPlan
from craftcache.daemon.room import UserReport
from craftcache.errors import CraftcacheError, InvalidSource, NotFound, Unavailable
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

from .eviction.quota import RoomLimits, RoomUsage, excess
from .fetch import Priority
from .gpu_services import GpuServiceSockets
from .overview import Overview
from .scrub import Integrity
from .scrub.examiner import PublishedModel
from .status import ModelState
from .warm.queue import WarmQueue
from .warming import Warming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.daemon.administration import QueuedWarm
    from craftcache.sources import RemoteSource
    from craftcache.wire import Coming, ModelsPage, Progress, Request

    from .budgets import BudgetLimits, Budgets
    from .database import Database, WarmJob
    from .directory_monitor import DirectoryMonitor
    from .eviction.keepers import Keepers
    from .fetch.measured_rate import MeasuredFetcher
    from .residency.residency import Residency
    from .retention import Retention
    from .settings import Settings
    from .sight import Sight
    from .store.opener import BlobOpener
    from .store.owner import OwnerCache
    from .store.store import Store
    from .warm.bundles import BundleImporter
    from .warm.planner import Planner
    from .warm.warmer import Warmed, Warmer
    from .watch import Watches

__all__ = ["Asker", "Service"]

log = logging.getLogger("craftcached")

AnswerT = TypeVar("AnswerT")

LOOKED_AT_ONCE = 64
"""Models of a page that are looked at before it is asked whether the page is full."""

OPEN_ATTEMPTS = 4
"""Times that a load warms and opens a model that is removed in between each time."""


class Asker(Protocol):
    """Who asks on a socket."""

    @property
    def uid(self) -> int:
        """User id, as the kernel reports it."""
        ...


class Service:
    """What the daemon can be asked for, the same for both sockets.

    What concerns watches, bundles, retention and integrity is decided by the attributes of these
    names; all else is decided here.

    Args:
        settings: The settings the daemon runs with.
        store: The published models.
        warmer: Fetches, verifies and publishes sources.
        records: The database, which keeps the queue of warms.
        opener: Opens published files for workers.
        residency: Reads files into the page cache.
        keepers: What keeps models in the cache or lets them go.
        budgets: What each user may have of the daemon.
        watches: The watched directories, whose generations are published.
        sight: What the daemon sees of itself; told of what is done here.
        monitor: Reports which of the daemon's own directories and sockets are gone.
        bundles: Imports models that come in a file.
        retention: Pins, removes, evicts and prunes models as people ask for it.
        planner: Says what a warm would bring.
        fetcher: Knows how fast this node fetches.
        owner: Another daemon's cache that is served from as well; None for none.

    Attributes:
        watches: The watched directories, whose generations are published.
        bundles: Imports models that come in a file.
        retention: Pins, removes, evicts and prunes models as people ask for it.
        started_at: Time of the daemon's start, in seconds since the epoch.
        integrity: Keeps what is cached what it was; the caller enters and leaves it.
        gpus: The services of the node's GPUs.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        warmer: Warmer,
        records: Database,
        opener: BlobOpener,
        residency: Residency,
        keepers: Keepers,
        budgets: Budgets,
        watches: Watches,
        sight: Sight,
        monitor: DirectoryMonitor,
        bundles: BundleImporter,
        retention: Retention,
        planner: Planner,
        fetcher: MeasuredFetcher,
        owner: OwnerCache | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._warmer = warmer
        self._opener = opener
        self._residency = residency
        self._planner = planner
        self._fetcher = fetcher
        self._pins = keepers.pins
        self._holds = keepers.holds
        self._uses = keepers.uses
        self._surveyor = keepers.surveyor
        self._evictor = keepers.evictor
        self._budgets = budgets
        self._monitor = monitor
        self._owner = owner
        self.watches = watches
        self.bundles = bundles
        self.retention = retention
        self._sight = sight
        self.started_at = time.time()
        self._warming = Warming(
            store=store,
            warmer=warmer,
            residency=residency,
            pins=keepers.pins,
            uses=keepers.uses,
            watches=watches,
        )
        self._queue = WarmQueue(records, self._warm_queued)
        self.integrity = Integrity(
            settings=settings,
            store=store,
            records=records,
            mender=self._warming,
            events=sight.events,
            is_busy=lambda: warmer.running > 0,
        )
        self.gpus = GpuServiceSockets(settings.socket_dir)
        self._overview = Overview(
            cache=store.cache,
            warmer=warmer,
            queue=self._queue,
            keepers=keepers,
            watches=watches,
            absences=sight.absences,
            gpus=self.gpus,
        )

    async def resume(self) -> None:
        """Take up the warms that were queued before the last stop."""
        await self._queue.resume()

    async def close(self) -> None:
        """Stop the queued warms at a point from which the next start goes on."""
        await self._queue.close()
        self.gpus.close()

    def handle_nowait(self, request: Request[AnswerT], peer: object) -> AnswerT | None:  # noqa: ARG002  # whoever asks
        """The answer if it is at hand: see Handler."""
        if not isinstance(request, Load):
            return None
        answer: Any = self._open(request)
        return cast("AnswerT | None", answer)

    async def handle(
        self,
        request: Request[AnswerT],
        peer: Asker,
        report: Callable[[Progress], None],
    ) -> AnswerT:
        """Answer a request; see Handler, and the method of each kind of request.

        Raises:
            CraftcacheError: Any of the tree.
        """
        answer: Any
        match request:
            case Load() | Resolve() | Warm() | WarmBatch():
                with self.working_for(peer.uid):
                    answer = await self._work(request, peer.uid, report)
            case Status():
                answer = await self.status()
            case Models():
                answer = await self._page(request)
            case Identify():
                answer = Identified(await self.watches.find(request.device, request.inode) or "")
            case Follow():
                served = await self.watches.wait_other(request.name, request.after)
                answer = _generation(request.name, served)
            case _:
                raise InvalidSource(
                    f"the daemon does no {request.TYPE}",
                    hint="Ask the service of a GPU, on gpu/UUID.sock",
                )
        return cast("AnswerT", answer)

    def working_for(self, uid: int) -> AbstractContextManager[None]:
        """A context in which a request that takes work is done for a user; see Budgets.request.

        Raises:
            BudgetExceeded: The user has too many.
        """
        return self._budgets.request(uid)

    async def _work(
        self,
        request: Load | Resolve | Warm | WarmBatch,
        uid: int,
        report: Callable[[Progress], None],
    ) -> object:
        match request:
            case Load():
                return await self._load(request, uid, report)
            case Resolve():
                return await self._resolve(request, uid, report)
            case Warm():
                return _warmed_model(await self.warm(request, report, uid=uid))
            case WarmBatch():
                return await self._warm_all(request, uid, report)

    async def _load(self, request: Load, uid: int, report: Callable[[Progress], None]) -> Loaded:
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
                if loaded := self._open(request, is_fresh=attempt > 0):
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

    def _open(self, request: Load, *, is_fresh: bool = False) -> Loaded | None:
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

    async def _resolve(
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
            path = tree.pointer(warmed.manifest.revision, record.filename)
        status = path.stat()
        return Resolved(cache.relative(path), status.st_dev, status.st_ino)

    async def warm(
        self, request: Warm, report: Callable[[Progress], None], *, uid: int | None
    ) -> Warmed:
        """Warm a source at its newest revision, then its dependencies, and hold it if asked to.

        Args:
            request: The warm.
            report: Called with progress; must not block.
            uid: The user; None where the daemon does it by itself.

        Raises:
            PolicyDenied: It may not be held for so long.
            CraftcacheError: See Warming.warm.
        """
        source, seconds = request.source, request.options.hold
        self._holds.check(source, seconds)
        with self._surveyor.needing(manifest_key(source)):
            warmed = await self._warming.warm(request, report, for_uid=uid)
            if seconds <= 0 or uid is None:
                return warmed
            hold = await self._holds.hold(source, uid, seconds)
        return replace(warmed, held_until=hold.expires_at)

    async def _warm_all(
        self, request: WarmBatch, uid: int, report: Callable[[Progress], None]
    ) -> WarmedBatch:
        """Do all warms at once; the answer has an error in the place of each that failed."""

        async def one(warm: Warm) -> WarmedModel | CraftcacheError:
            try:
                return _warmed_model(await self.warm(warm, report, uid=uid))
            except CraftcacheError as error:
                return error

        return WarmedBatch(tuple(await asyncio.gather(*map(one, request.warms))))

    async def _page(self, request: Models) -> ModelsPage:
        """The models whose source sorts after that of the request, as many as one message holds.

        Only those are looked at, or a list of thousands would take as many looks at all of them.
        """
        published = await self._store.published()
        later = [item for item in published if item[1].source > request.after]
        states: list[CachedModel] = []
        for start in range(0, len(later), LOOKED_AT_ONCE):
            batch = later[start : start + LOOKED_AT_ONCE]
            states += [(await self._state(key, manifest)).model for key, manifest in batch]
            page = first_page(states)
            if page.next:
                return page
        return first_page(states)

    async def queue(self, warms: Sequence[Warm], *, uid: int) -> list[QueuedWarm]:
        """Queue warms; they outlive the request and a restart of the daemon.

        If it raises, none of them was queued.

        Raises:
            InvalidSource: One of the sources is a watch, which is not fetched.
            PolicyDenied: The settings do not allow one of the sources, or so long a hold.
            BudgetExceeded: The user has too many warms in the queue.
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
            self._holds.check(warm.source, warm.options.hold)
        jobs = await self._queue.add(
            warms, uid, lambda queued: self._budgets.check_queued(uid, queued)
        )
        for each in jobs:
            self._sight.events.tell("warm_queued", source=each.source, number=each.id)
        return jobs

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
        report = await self._evictor.report()
        room = PlannedRoom(report.free, report.min_free, report.used, report.max_bytes, (), 0, 0)
        plan = WarmPlan(models, room, self._fetcher.bytes_per_second)
        wanted = excess(
            RoomUsage(report.used, report.claimed, report.lacking, report.free),
            RoomLimits(report.max_bytes, report.min_free),
            plan.fetch_bytes,
        )
        if not wanted:
            return plan
        eviction = await self._evictor.evict(wanted, dry_run=True)
        room = replace(
            room,
            evicted=eviction.removed,
            freed_bytes=eviction.freed_bytes,
            missing_bytes=eviction.missing_bytes,
        )
        return replace(plan, room=room)

    def queued(self) -> list[QueuedWarm]:
        """The queued warms that are not done, oldest first."""
        return self._queue.all()

    async def withdraw_warm(self, number: int) -> QueuedWarm:
        """Cancel a queued warm; see WarmQueue.withdraw."""
        return await self._queue.withdraw(number)

    def users(self) -> list[UserReport]:
        """What each user has of the daemon, by uid."""
        budgets = {budget.uid: budget for budget in self._budgets.report()}
        queued, held = self._queue.users(), Counter(hold.uid for hold in self._holds.all())
        return [
            UserReport(
                uid,
                requests=budgets[uid].requests if uid in budgets else 0,
                requests_last_minute=budgets[uid].requests_last_minute if uid in budgets else 0,
                fetched_bytes_today=budgets[uid].fetched_bytes_today if uid in budgets else 0,
                queued=queued[uid],
                held=held[uid],
            )
            for uid in sorted({*budgets, *queued, *held})
        ]

    @property
    def budget_limits(self) -> BudgetLimits:
        """What each user may have of the daemon; 0 is no limit."""
        return self._budgets.limits

    async def verify(self, texts: Sequence[str]) -> int:
        """Have all files of these models hashed again, or with no names of all models.

        Returns:
            The number of the verification; see Verifications.

        Raises:
            NotFound: One of them is not in the cache; no file is hashed.
        """
        sources = [parse(text) for text in texts]
        if sources:
            models = [
                (manifest_key(source), self._store.required_manifest(source)) for source in sources
            ]
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
        return await self._state(manifest_key(source), self._store.required_manifest(source))

    def progress(self) -> list[Progress]:
        """The progress of each source that is being warmed."""
        return self._warmer.progress()

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
        quarantined, quarantined_bytes = await self.integrity.quarantine.totals()
        status = DaemonStatus(
            version=VERSION,
            pid=os.getpid(),
            started_at=self.started_at,
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
            processes=len(self._sight.processes),
            fallbacks=dict(self._sight.counts.fallbacks),
        )
        return await self._overview.complete(status, published)

    def paths(self, shown: str) -> list[Path]:
        """Paths of the files of a model that is published under a name as shown to people."""
        manifest = self._store.manifest(parse(shown))
        return [self._store.cache.path(record) for record in manifest.files] if manifest else []

    @property
    def queue_length(self) -> int:
        """Warms that are queued and not done."""
        return len(self._queue)

    def coming(self) -> list[Coming]:
        """What is being brought, oldest first."""
        return self._warmer.coming()

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
            pinned_until=None if pin is None else pin.expires_at,
            held_until=self._holds.until(key),
        )
        return ModelState(manifest, model)

    async def _resident(self, records: Iterable[FileRecord]) -> int | None:
        return await self._residency.resident(map(self._store.cache.path_text, records))

    async def _warm_queued(self, job: WarmJob) -> None:
        await self.warm(job.warm, lambda _: None, uid=job.uid)


def _warmed_model(warmed: Warmed) -> WarmedModel:
    return WarmedModel(
        warmed.manifest.source,
        warmed.manifest.revision,
        warmed.bytes_fetched,
        warmed.bytes_reused,
        resident_bytes=warmed.resident_bytes,
        not_refreshed=warmed.not_refreshed,
        held_until=warmed.held_until,
    )


def _generation(name: str, served: Manifest) -> Generation:
    if served.watched is None:
        raise CraftcacheError("the cache says not what was watched", source=served.source)
    records = {part: served.file(filename) for part, filename in FILENAMES.items()}
    digests = {part: record.sha256 for part, record in records.items() if record is not None}
    return Generation(name, served.watched.generation, digests, Path(served.watched.directory))
