"""Requests answered, the same for both sockets."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from craftcache.cache.manifest import manifest_key
from craftcache.daemon.room import UserReport
from craftcache.errors import CraftcacheError, InvalidSource
from craftcache.sources import FILENAMES, parse
from craftcache.wire import (
    Follow,
    Generation,
    Identified,
    Identify,
    Load,
    Models,
    Resolve,
    Status,
    Warm,
    WarmBatch,
)
from craftcached.gpu_services import GpuServiceSockets
from craftcached.overview import Overview
from craftcached.scrub import Integrity
from craftcached.scrub.examiner import PublishedModel

from .inventory import Inventory
from .loads import Loads
from .warming import Warming
from .warms import Warms, warmed_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from craftcache.cache.manifest import Manifest
    from craftcache.wire import Progress, Request
    from craftcached.budgets import BudgetLimits, Budgets
    from craftcached.database import Database
    from craftcached.directory_monitor import DirectoryMonitor
    from craftcached.eviction.parts import EvictionParts
    from craftcached.fetch.measured_rate import MeasuredFetcher
    from craftcached.observability import Observability
    from craftcached.residency.residency import Residency
    from craftcached.retention import Retention
    from craftcached.settings import Settings
    from craftcached.store.opener import BlobOpener
    from craftcached.store.owner import OwnerCache
    from craftcached.store.store import Store
    from craftcached.warm.bundles import BundleImporter
    from craftcached.warm.planner import Planner
    from craftcached.warm.warmer import Warmer
    from craftcached.watch import Watches

__all__ = ["Asker", "Service", "ServiceParts"]

AnswerT = TypeVar("AnswerT")


class Asker(Protocol):
    """Who asks on a socket."""

    @property
    def uid(self) -> int:
        """User id, as the kernel reports it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceParts:
    """What the service works with.

    Attributes:
        settings: The settings the daemon runs with.
        store: The published models.
        warmer: Fetches, verifies and publishes sources.
        records: The database, which keeps the queue of warms.
        opener: Opens published files for workers.
        residency: Reads files into the page cache.
        eviction: What keeps models in the cache or lets them go.
        budgets: What each user may have of the daemon.
        watches: The watched directories, whose generations are published.
        observability: What the daemon sees of itself; told of what is done here.
        monitor: Reports which of the daemon's own directories and sockets are gone.
        bundles: Imports models that come in a file.
        retention: Pins, removes, evicts and prunes models as people ask for it.
        planner: Says what a warm would bring.
        fetcher: Knows how fast this node fetches.
        owner: Another daemon's cache that is served from as well; None for none.
    """

    settings: Settings
    store: Store
    warmer: Warmer
    records: Database
    opener: BlobOpener
    residency: Residency
    eviction: EvictionParts
    budgets: Budgets
    watches: Watches
    observability: Observability
    monitor: DirectoryMonitor
    bundles: BundleImporter
    retention: Retention
    planner: Planner
    fetcher: MeasuredFetcher
    owner: OwnerCache | None = None


class Service:
    """What the daemon can be asked for, the same for both sockets; its attributes do it.

    Args:
        parts: What it works with.

    Attributes:
        started_at: Time of the daemon's start, in seconds since the epoch.
        running: The running warms.
        loads: Opens published files for workers.
        warms: Carries out, queues and plans warms.
        inventory: Describes models and the daemon.
        watches: The watched directories, whose generations are published.
        bundles: Imports models that come in a file.
        retention: Pins, removes, evicts and prunes models as people ask for it.
        integrity: Keeps what is cached what it was; the caller enters and leaves it.
        gpus: The services of the node's GPUs.
    """

    def __init__(self, parts: ServiceParts) -> None:
        store, warmer, eviction = parts.store, parts.warmer, parts.eviction
        self._store = store
        self.running = warmer.running
        self._holds = eviction.holds
        self._budgets = parts.budgets
        self.started_at = time.time()
        self.watches = parts.watches
        self.bundles = parts.bundles
        self.retention = parts.retention
        self.gpus = GpuServiceSockets(parts.settings.socket_dir)
        warming = Warming(
            store=store,
            warmer=warmer,
            residency=parts.residency,
            pins=eviction.pins,
            uses=eviction.uses,
            watches=parts.watches,
        )
        self.loads = Loads(
            settings=parts.settings,
            store=store,
            opener=parts.opener,
            warming=warming,
            eviction=eviction,
            owner=parts.owner,
        )
        self.warms = Warms(
            store=store,
            warmer=warmer,
            warming=warming,
            records=parts.records,
            eviction=eviction,
            budgets=parts.budgets,
            planner=parts.planner,
            fetcher=parts.fetcher,
            events=parts.observability.events,
        )
        self.integrity = Integrity(
            settings=parts.settings,
            store=store,
            records=parts.records,
            mender=warming,
            events=parts.observability.events,
            is_busy=lambda: len(warmer.running) > 0,
        )
        self.inventory = Inventory(
            settings=parts.settings,
            started_at=self.started_at,
            store=store,
            residency=parts.residency,
            eviction=eviction,
            warmer=warmer,
            queue=self.warms.queue,
            watches=parts.watches,
            integrity=self.integrity,
            monitor=parts.monitor,
            observability=parts.observability,
            overview=self._overview(parts),
        )

    def _overview(self, parts: ServiceParts) -> Overview:
        return Overview(
            cache=parts.store.cache,
            lock=parts.store.lock,
            warmer=parts.warmer,
            queue=self.warms.queue,
            eviction=parts.eviction,
            watches=parts.watches,
            observability=parts.observability,
            gpus=self.gpus,
        )

    async def resume(self) -> None:
        """Take up the warms that were queued before the last stop, and tell of what is lost."""
        await self.inventory.not_warm()
        await self.warms.queue.resume()

    async def close(self) -> None:
        """Stop the queued warms at a point from which the next start goes on."""
        await self.warms.queue.close()
        self.gpus.close()

    def handle_nowait(self, request: Request[AnswerT], peer: object) -> AnswerT | None:  # noqa: ARG002  # whoever asks
        """The answer if it is at hand: see Handler."""
        if not isinstance(request, Load):
            return None
        answer: Any = self.loads.open(request)
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
                answer = await self.inventory.status()
            case Models():
                answer = await self.inventory.page(request)
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
                return await self.loads.load(request, uid, report)
            case Resolve():
                return await self.loads.resolve(request, uid, report)
            case Warm():
                return warmed_model(await self.warms.warm(request, report, uid=uid))
            case WarmBatch():
                return await self.warms.warm_all(request, uid, report)

    def users(self) -> list[UserReport]:
        """What each user has of the daemon, by uid."""
        budgets = {budget.uid: budget for budget in self._budgets.report()}
        queued, held = self.warms.queue.users(), Counter(hold.uid for hold in self._holds.all())
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


def _generation(name: str, served: Manifest) -> Generation:
    if served.watched is None:
        raise CraftcacheError("the cache says not what was watched", source=served.source)
    records = {part: served.file(filename) for part, filename in FILENAMES.items()}
    digests = {part: record.sha256 for part, record in records.items() if record is not None}
    return Generation(name, served.watched.generation, digests, Path(served.watched.directory))
