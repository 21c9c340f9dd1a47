"""The daemon's life: start, serve, stop."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from typing import TYPE_CHECKING, Self

from craftcache.cache.cache_format import check_format
from craftcache.cache.directory import CacheDir
from craftcache.errors import Unavailable
from craftcache.origins.policy import UrlPolicy

from .budgets import BudgetLimits, Budgets
from .counts import CountedFetcher
from .database import Database, check_version
from .directory_monitor import DirectoryMonitor, MonitoredDirectory
from .eviction.evictor import Evictor
from .eviction.holds import Holds
from .eviction.last_use import LastUse
from .eviction.maintenance import Housekeeping
from .eviction.meter import RoomMeter
from .eviction.parts import EvictionParts
from .eviction.pins import Pins
from .eviction.prune import Pruner
from .eviction.survey import Surveyor
from .fetch import Engine, EngineSettings, IntegrityRetry, Mirrors
from .fetch.disk_space import DiskSpace, existing, free_bytes
from .fetch.measured_rate import MeasuredFetcher
from .host_tokens import HostTokens
from .inspect import Inspector
from .min_free import MinFree
from .observability import Observability
from .residency.residency import Residency
from .retention import Retention
from .serve.listeners import Listeners
from .serve.peers import Administrators
from .service import Service, ServiceParts
from .store.opener import BlobOpener
from .store.owner import OwnerCache
from .store.store import Store
from .systemd import InheritedSockets
from .warm.acquire import FileAcquirer
from .warm.admission import FetchAdmission
from .warm.allow import FetchPolicy
from .warm.bundles import BundleImporter
from .warm.hub import Hub
from .warm.inspections import CheckpointInspections
from .warm.origins import Origins
from .warm.planner import Planner
from .warm.warmer import Warmer
from .watch import Watches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from craftcache.wire import Progress

    from .scrub import Integrity
    from .settings import Settings

__all__ = ["Daemon"]

log = logging.getLogger("craftcached")


class Daemon:
    """Everything that serves one cache directory; an async context manager.

    Entering it opens the store and its parts and then the sockets, so that each client that can
    connect is answered. Leaving it goes the other way round: no new requests, running ones finish,
    downloads stop and the next start resumes them.

    Args:
        settings: The settings to start with; apply changes the live ones among them.
        inherited: Sockets that a service manager listens on; the daemon makes those that are
            missing.
        xet: Command line of the process that fetches from Xet storage; None uses HTTP for all.
    """

    def __init__(
        self,
        settings: Settings,
        inherited: InheritedSockets | None = None,
        *,
        xet: Sequence[str] | None = None,
    ) -> None:
        self._settings = settings
        self._xet = xet
        self._inherited = inherited or InheritedSockets()
        self._life = contextlib.AsyncExitStack()
        self._policy = UrlPolicy(
            insecure_hosts=frozenset(settings.insecure_hosts),
            hub_endpoint=settings.hub_endpoint,
            private_hosts=frozenset(settings.private_hosts),
        )
        self._administrators = Administrators(settings.admin_group)
        self._store: Store | None = None
        self._warmer: Warmer | None = None
        self._evictor: Evictor | None = None
        self._holds: Holds | None = None
        self._budgets: Budgets | None = None
        self._watches: Watches | None = None
        self._integrity: Integrity | None = None
        self._monitor: DirectoryMonitor
        self._observability = Observability.of(settings.own_cache_dir)
        self._mirrors = Mirrors(
            settings.mirrors,
            hub_endpoint=settings.hub_endpoint,
            tell=self._observability.events.tell,
        )

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as life:
            service = await self._open_service(life)
            listeners = Listeners(
                settings=self._settings,
                inherited=self._inherited,
                service=service,
                observability=self._observability,
                administrators=self._administrators,
                mirrors=self._mirrors.statistics,
                monitor=self._monitor,
            )
            await listeners.open(life)
            await service.resume()
            self._life = life.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._life.aclose()

    @property
    def settings(self) -> Settings:
        """The settings the daemon runs with; those that take a restart are as it started with."""
        return self._settings

    def apply(self, settings: Settings) -> None:
        """Use these settings from now on, but for those that take a restart."""
        self._settings = self._settings.with_live(settings)
        self._policy.allow_insecure(frozenset(settings.insecure_hosts))
        self._policy.allow_private(frozenset(settings.private_hosts))
        self._administrators.group = settings.admin_group
        if self._warmer is not None:
            self._warmer.policy.change(settings.allow, deny=settings.deny)
        if self._evictor is not None:
            self._evictor.max_bytes = settings.max_bytes
            self._evictor.min_free = MinFree.parse(settings.min_free)
            self._evictor.evicts_others = settings.evict_others
        if self._holds is not None:
            self._holds.max_seconds = settings.max_hold
        if self._budgets is not None:
            self._budgets.limits = _budget_limits(settings)
        if self._watches is not None:
            self._watches.configure(settings.watches)
        if self._integrity is not None:
            self._integrity.configure(settings)

    async def until_cache_is_lost(self) -> None:
        """Wait until another daemon took over the cache: on local file systems, for ever."""
        assert self._store is not None  # noqa: S101  # the daemon was entered
        await self._store.lock.lost.wait()

    def progress(self) -> list[Progress]:
        """The progress of each source that is being warmed."""
        return self._warmer.running.progress() if self._warmer is not None else []

    async def _open_service(self, life: contextlib.AsyncExitStack) -> Service:
        settings, observability = self._settings, self._observability
        store, records = await self._open_storage(life)
        await life.enter_async_context(observability.absences.kept_in(records))
        await life.enter_async_context(observability.models_here.kept_in(records))
        owner = OwnerCache(store, settings.cache_dir) if settings.read_only else None
        inspector = await life.enter_async_context(Inspector())
        staging = store.cache.staging
        space = DiskSpace(lambda: free_bytes(existing(staging)), None, store.cache.root)
        fetcher = await self._open_fetcher(life, staging / "fetch", space)
        inspections = CheckpointInspections(store, inspector)
        acquirer = FileAcquirer(store=store, fetcher=fetcher, inspections=inspections)
        self._budgets = await life.enter_async_context(Budgets(records, _budget_limits(settings)))
        origins = self._open_origins(life)
        self._warmer = Warmer(
            store=store,
            origins=origins,
            acquirer=acquirer,
            inspections=inspections,
            policy=FetchPolicy(settings.allow, settings.deny),
            admission=FetchAdmission(
                space=space, store=store, staging=staging / "fetch", budgets=self._budgets
            ),
            owner=owner,
            events=observability.events,
        )
        opener = BlobOpener(store, settings.serve_dir)
        opener.check()
        residency = await life.enter_async_context(Residency())
        eviction = await self._open_eviction(life, store, records, residency, space)
        if owner is not None:  # now, as it is known what stays of models that the owner has removed
            await owner.follow_all()
        may_fetch = self._warmer.policy.check
        bundles = await life.enter_async_context(
            BundleImporter(
                store=store,
                inspections=inspections,
                origins=origins,
                check_allowed=may_fetch,
                space=space,
            )
        )
        self._watches = Watches(
            store=store,
            inspector=inspector,
            records=records,
            events=observability.events,
            rules=settings.watches,
            space=space,
        )
        self._monitor = DirectoryMonitor(self._own_directories(store, records))
        parts = ServiceParts(
            settings=settings,
            store=store,
            warmer=self._warmer,
            records=records,
            opener=opener,
            residency=residency,
            eviction=eviction,
            budgets=self._budgets,
            watches=self._watches,
            observability=observability,
            monitor=self._monitor,
            bundles=bundles,
            retention=self._retention(store, eviction, self._watches),
            planner=Planner(store=store, origins=origins, check_allowed=may_fetch),
            fetcher=fetcher,
            owner=owner,
        )
        service = Service(parts)
        life.push_async_callback(service.close)
        self._integrity = await life.enter_async_context(service.integrity)
        await life.enter_async_context(self._watches.running(service.warms.add_needs))
        await life.enter_async_context(_housekeeping(store, eviction))
        return service

    async def _open_storage(self, life: contextlib.AsyncExitStack) -> tuple[Store, Database]:
        """The store and the database, whose formats are looked at before either is changed."""
        settings = self._settings
        cache = CacheDir(settings.own_cache_dir)
        check_format(cache)
        with _naming("state_dir", settings.state_dir):
            check_version(settings.state_dir)
        with _naming("overlay_dir" if settings.read_only else "cache_dir", cache.root):
            store = self._store = await life.enter_async_context(
                Store(cache, self._observability.events)
            )
        with _naming("state_dir", settings.state_dir):
            records = await life.enter_async_context(Database(settings.state_dir))
        return store, records

    async def _open_fetcher(
        self, life: contextlib.AsyncExitStack, staging: Path, space: DiskSpace
    ) -> MeasuredFetcher:
        """The fetch engine, with a second attempt at wrong bytes, counted and measured."""
        settings = self._settings
        engine = Engine(
            staging,
            EngineSettings(
                max_connections=settings.max_connections,
                max_connections_per_host=settings.max_connections_per_host,
                bandwidth=settings.max_bytes_per_second or None,
                uplink=settings.max_uplink_bytes_per_second or None,
                token_place=settings.hub_token_place,
            ),
            check_url=self._policy.check_url,
            may_be_private=self._policy.may_be_private,
            space=space,
            xet=self._xet,
            mirrors=self._mirrors,
        )
        await life.enter_async_context(engine)
        attempt = IntegrityRetry(engine, self._mirrors)
        return MeasuredFetcher(CountedFetcher(attempt, self._observability.counts))

    def _open_origins(self, life: contextlib.AsyncExitStack) -> Origins:
        settings = self._settings
        hub = Hub(
            endpoint=settings.hub_endpoint,
            token=settings.hub_token,
            token_place=settings.hub_token_place,
            timeout=settings.hub_timeout,
            mirrors=self._mirrors,
        )
        life.callback(hub.close)
        return Origins(hub, self._policy, HostTokens(settings.tokens_dir))

    def _retention(self, store: Store, eviction: EvictionParts, watches: Watches) -> Retention:
        events = self._observability.events
        pruner = Pruner(
            survey=eviction.surveyor.survey,
            remove=store.remove,
            is_kept=eviction.is_kept,
            reason=lambda model: eviction.surveyor.reason(model, {}),
            uses=eviction.uses,
            tell=lambda source, freed: events.tell("removed", source=source, freed_bytes=freed),
        )
        return Retention(
            store=store,
            eviction=eviction,
            pruner=pruner,
            watches=watches,
            events=events,
            forget=self._observability.forget,
        )

    def _own_directories(self, store: Store, records: Database) -> tuple[MonitoredDirectory, ...]:
        settings = self._settings
        return (
            MonitoredDirectory(
                f"the cache directory {settings.own_cache_dir}",
                store.lock.is_obstructed,
                store.lock.check_healable,
                grace=0.0,  # nothing is made yet
            ),
            MonitoredDirectory(
                f"the state directory {settings.state_dir}", records.is_gone, records.heal
            ),
        )

    async def _open_eviction(
        self,
        life: contextlib.AsyncExitStack,
        store: Store,
        records: Database,
        residency: Residency,
        space: DiskSpace,
    ) -> EvictionParts:
        """What keeps models or lets them go; from now on it decides what comes, too."""
        settings, events = self._settings, self._observability.events
        pins = Pins(store=store, records=records, residency=residency, events=events)
        await life.enter_async_context(pins)
        self._holds = holds = await life.enter_async_context(Holds(records, settings.max_hold))
        uses = await life.enter_async_context(LastUse(records))
        surveyor = Surveyor(store=store, pins=pins, holds=holds, uses=uses)
        self._evictor = space.policy = evictor = Evictor(
            store=store,
            surveyor=surveyor,
            meter=RoomMeter(store.cache, space),
            remove=store.remove,
            uses=uses,
            holds=holds,
            max_bytes=settings.max_bytes,
            min_free=MinFree.parse(settings.min_free),
            events=events,
        )
        evictor.evicts_others = settings.evict_others
        eviction = EvictionParts(pins, holds, uses, surveyor, evictor)
        store.kept_keys = eviction.keys
        return eviction


def _housekeeping(store: Store, eviction: EvictionParts) -> Housekeeping:
    return Housekeeping(
        store=store,
        pins=eviction.pins,
        evictor=eviction.evictor,
        uses=eviction.uses,
        holds=eviction.holds,
    )


@contextlib.contextmanager
def _naming(setting: str, directory: Path) -> Iterator[None]:
    """Turn a failure to open a directory into an error that names the setting."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(
            f"{setting} {directory} cannot be used: {error}",
            hint=f"Make it a directory that uid {os.geteuid()} may write, or choose another",
            retryable=False,
        ) from error


def _budget_limits(settings: Settings) -> BudgetLimits:
    return BudgetLimits(
        requests=settings.max_requests_per_uid,
        requests_per_minute=settings.max_requests_per_minute_per_uid,
        fetched_bytes_per_day=settings.max_daily_bytes_per_uid,
        queued=settings.max_queued_per_uid,
    )
