"""Warms: those that are waited for, those in the queue, and what one would take."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.cache.manifest import manifest_key
from craftcache.daemon.planning import PlannedRoom, WarmPlan
from craftcache.errors import CraftcacheError, InvalidSource, Unavailable
from craftcache.sources import WatchSource, parse
from craftcache.wire import Warm, WarmedBatch, WarmedModel
from craftcached.eviction.quota import RoomLimits, RoomUsage, excess
from craftcached.warm.queue import WarmQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craftcache.cache.manifest import Manifest
    from craftcache.daemon.administration import QueuedWarm
    from craftcache.wire import Progress, WarmBatch
    from craftcached.budgets import Budgets
    from craftcached.database import Database, WarmJob
    from craftcached.events import Events
    from craftcached.eviction.parts import EvictionParts
    from craftcached.fetch.measured_rate import MeasuredFetcher
    from craftcached.store.store import Store
    from craftcached.warm.planner import Planner
    from craftcached.warm.warmed import Warmed
    from craftcached.warm.warmer import Warmer

    from .warming import Warming

__all__ = ["Warms", "warmed_model"]

log = logging.getLogger("craftcached")


class Warms:
    """Carries out, queues and plans warms.

    Args:
        store: The published models.
        warmer: Knows what may be fetched.
        warming: Carries out a warm.
        records: The database, which keeps the queue.
        eviction: Holds what is warmed, if asked to, and knows what would be evicted.
        budgets: What each user may have of the daemon.
        planner: Says what a warm would bring.
        fetcher: Knows how fast this node fetches.
        events: Told of what is queued.

    Attributes:
        queue: The queued warms.
    """

    def __init__(
        self,
        *,
        store: Store,
        warmer: Warmer,
        warming: Warming,
        records: Database,
        eviction: EvictionParts,
        budgets: Budgets,
        planner: Planner,
        fetcher: MeasuredFetcher,
        events: Events,
    ) -> None:
        self._store = store
        self._warmer = warmer
        self._warming = warming
        self._holds = eviction.holds
        self._surveyor = eviction.surveyor
        self._evictor = eviction.evictor
        self._budgets = budgets
        self._planner = planner
        self._fetcher = fetcher
        self._events = events
        self.queue = WarmQueue(records, self._warm_queued)

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

    async def warm_all(
        self, request: WarmBatch, uid: int, report: Callable[[Progress], None]
    ) -> WarmedBatch:
        """Do all warms at once; the answer has an error in the place of each that failed."""

        async def one(warm: Warm) -> WarmedModel | CraftcacheError:
            try:
                return warmed_model(await self.warm(warm, report, uid=uid))
            except CraftcacheError as error:
                return error

        return WarmedBatch(tuple(await asyncio.gather(*map(one, request.warms))))

    async def add(self, warms: Sequence[Warm], *, uid: int) -> list[QueuedWarm]:
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
        jobs = await self.queue.add(
            warms, uid, lambda queued: self._budgets.check_queued(uid, queued)
        )
        for each in jobs:
            self._events.tell("warm_queued", source=each.source, number=each.id)
        return jobs

    async def add_needs(self, generation: Manifest) -> None:
        """Queue a warm of a generation's dependencies, unless all of them are cached."""
        if all(self._store.needed(need) for need in generation.needs):
            return
        try:
            await self.queue.add([Warm(parse(generation.source))])
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

    async def _warm_queued(self, job: WarmJob) -> None:
        await self.warm(job.warm, lambda _: None, uid=job.uid)


def warmed_model(warmed: Warmed) -> WarmedModel:
    """The answer that a worker gets."""
    return WarmedModel(
        warmed.manifest.source,
        warmed.manifest.revision,
        warmed.bytes_fetched,
        warmed.bytes_reused,
        resident_bytes=warmed.resident_bytes,
        not_refreshed=warmed.not_refreshed,
        held_until=warmed.held_until,
    )
