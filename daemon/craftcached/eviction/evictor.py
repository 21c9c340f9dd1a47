"""Frees space: surveys the published models, lets the policy choose, and removes.

Before bytes come it decides whether they may, and makes room for them; what can never fit is
refused before anything is removed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.amounts import counted, size_text
from craftcache.daemon.administration import Eviction, KeptModel
from craftcache.daemon.room import RoomReport
from craftcache.errors import StorageFull
from craftcached.events import Events
from craftcached.min_free import MinFree

from .others import OTHERS, remove_others, survey_others
from .policy import Plan, plan_eviction, used_bytes
from .quota import RoomDecision, RoomLimits, RoomUsage, admit, excess, over_disk, over_quota
from .survey import LEFT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

    from craftcached.store.removal import Removed
    from craftcached.store.store import Store

    from .holds import Holds
    from .last_use import LastUse
    from .meter import RoomMeter
    from .policy import EvictionCandidate
    from .survey import Surveyor

__all__ = ["Evictor"]

log = logging.getLogger("craftcached")

HANDOVER_SECONDS = 60.0
"""Time after its publication or last use in which the daemon itself does not evict a model beyond
the quota: the worker that waited for it may not have opened it yet."""

ORPHANED_WHEN_SHORT_SECONDS = 60.0
"""Age of a blob without a manifest after which it is removed where room is needed."""

LOOKS = 10
"""Attempts to measure while nothing is published; after them what is in doubt counts as used."""

TRIM_SECONDS = 50.0
"""Time after which all models are surveyed again even if the daemon itself has put nothing there:
workers publish what they fetch for themselves."""

RETRY_SECONDS = 30.0
"""Time after which it makes sense to ask again for what does not fit while others are in use."""

SHOWN_REASONS = 4
"""Models that an error names, with what protects them."""

NO_MIN_FREE = MinFree(0, is_percentage=False)


class Evictor:
    """Removes models to free space; a RoomPolicy.

    Args:
        store: The published models.
        surveyor: Looks at them.
        meter: Measures the use of the room.
        remove: Removes a model, given the key of its manifest, with the dependencies that only it
            has, but for those whose keys are given as well.
        uses: The time of each model's last use.
        holds: The models that stay for a while, by users' word.
        max_bytes: Bytes that all that craftcache put there may take; 0 is no limit.
        min_free: The part of the disk that no fetch may use.
        clock: Returns the time in seconds since the epoch.
        events: Told of each model that goes.

    Attributes:
        max_bytes: Bytes that all that craftcache put there may take; may be changed at any time.
        min_free: The part of the disk that no fetch may use; may be changed at any time.
        evicts_others: Whether snapshots of other tools are removed too where the disk lacks room.
    """

    def __init__(
        self,
        *,
        store: Store,
        surveyor: Surveyor,
        meter: RoomMeter,
        remove: Callable[[str, Collection[str]], Awaitable[Removed]],
        uses: LastUse,
        holds: Holds,
        max_bytes: int,
        min_free: MinFree = NO_MIN_FREE,
        clock: Callable[[], float] = time.time,
        events: Events | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.min_free = min_free
        self.evicts_others = False
        self._store = store
        self._surveyor = surveyor
        self._meter = meter
        self._remove = remove
        self._uses = uses
        self._holds = holds
        self._clock = clock
        self._events = events or Events()
        # Held across a whole eviction, from the survey to the last removal: two at once would each
        # free the bytes that are wanted. Taken after DiskSpace's lock, before the store's
        # WritersLock and the database; no other lock is taken inside.
        self._evicting = asyncio.Lock()
        self._told: tuple[KeptModel, ...] = ()
        self._trimmed_at = 0.0

    async def limits(self) -> RoomLimits:
        """The limits in bytes."""
        return RoomLimits(self.max_bytes, self.min_free.of(await self._meter.capacity()))

    async def make_room(self, more: int, *, source: str) -> bool:
        """See RoomPolicy: no more goes than is needed, and nothing where ``more`` does not fit.

        What is to go may come into use between two removals: then some has gone in vain, and the
        error says how many.

        Raises:
            StorageFull: It does not; retryable if it may once others are not in use any more.
        """
        limits = await self.limits()
        usage = await (self._meter.estimate() if self.max_bytes > 0 else self._meter.disk())
        if usage is not None and not excess(usage, limits, more):
            return False
        async with self._evicting:
            return await self._admit(more, limits, source)

    async def report(self) -> RoomReport:
        """The room of the cache, and what takes it."""
        limits = await self.limits()
        models, usage = await self._look()
        current = [model for model in models if not model.is_superseded]
        return RoomReport(
            max_bytes=limits.max_bytes,
            min_free=limits.min_free,
            used=usage.used,
            superseded=used_bytes(models) - used_bytes(current),
            claimed=usage.claimed,
            lacking=usage.lacking,
            others=await self._meter.others_bytes(models),
            evicts_others=self.evicts_others,
            free=usage.free,
            capacity=await self._meter.capacity(),
        )

    async def evict(self, wanted: int | None, *, dry_run: bool) -> Eviction:
        """Free space, or say which models that would remove.

        Args:
            wanted: Bytes to free; None stands for the bytes beyond ``max_bytes``.
            dry_run: Whether nothing is removed.
        """
        async with self._evicting:
            models, usage = await self._look()
            wanted = self._over_quota(usage) if wanted is None else wanted
            if dry_run:
                plan = plan_eviction(models, wanted)
                return self._outcome(plan.victims, plan.freed, models, wanted - plan.freed)
            return await self._shrink(wanted, handover=0.0, reason="asked")

    async def trim(self) -> None:
        """Evict down to ``max_bytes``, as far as there are models that may be evicted."""
        if self.max_bytes <= 0 or await self._is_surely_under_quota():
            return
        async with self._evicting:
            models, usage = await self._look(handover=HANDOVER_SECONDS)
            outcome = await self._shrink(
                self._over_quota(usage),
                handover=HANDOVER_SECONDS,
                models=models,
                reason="max_bytes",
            )
        if outcome.kept and outcome.kept != self._told:
            listed = ", ".join(f"{kept.source} ({kept.reason})" for kept in outcome.kept)
            beyond = size_text(outcome.missing_bytes)
            log.warning("%s beyond max_bytes stay: %s", beyond, listed)
        self._told = outcome.kept

    async def _admit(self, more: int, limits: RoomLimits, source: str) -> bool:
        """Make room for ``more`` bytes; surveys again before each removal: see _shrink."""
        removed: dict[str, EvictionCandidate] = {}
        is_swept = False
        while True:
            models, usage = await self._look(spared=removed)
            # What others put there counts towards no quota, so only the disk gains by it.
            is_disk_short = over_disk(usage, limits, more) > over_quota(usage, limits, more)
            if self.evicts_others and is_disk_short:
                models += await survey_others(self._store, models, spared=removed)
            for_long = [m.key for m in models if self._surveyor.stays_for_long(m.key, m.source)]
            admission = admit(models, usage, limits, more, kept_for_long=for_long)
            if not admission.missing and not admission.plan.victims:
                return bool(removed) or is_swept
            # Before any model goes: what no model has any more.
            if not is_swept:
                is_swept = True
                if await self._store.sweep(before=time.time() - ORPHANED_WHEN_SHORT_SECONDS):
                    continue
            if admission.missing:
                raise self._full(more, usage, limits, admission, models, source, len(removed))
            await self._remove_first(admission.plan, models, removed, "admission")

    async def _shrink(
        self,
        wanted: int,
        *,
        handover: float,
        reason: str,
        models: Sequence[EvictionCandidate] | None = None,
    ) -> Eviction:
        """Remove one model after the other, surveying again before each: some come into use."""
        removed: dict[str, EvictionCandidate] = {}
        freed = 0
        while True:
            if removed or models is None:
                models = await self._surveyor.survey(handover=handover, spared=removed)
            plan = plan_eviction(models, wanted - freed)
            if not plan.victims:
                return self._outcome(removed.values(), freed, models, wanted - freed)
            freed += await self._remove_first(plan, models, removed, reason)

    async def _remove_first(
        self,
        plan: Plan,
        models: Iterable[EvictionCandidate],
        removed: dict[str, EvictionCandidate],
        reason: str,
    ) -> int:
        """Remove the first victim of a plan, and note it; returns the bytes freed."""
        victim = plan.victims[0]
        removed[victim.key] = victim
        if victim.key.startswith(OTHERS):
            freed = await remove_others(self._store, victim.key)
        elif victim.key.startswith(LEFT):
            freed = await self._store.remove_underway(victim.key.removeprefix(LEFT))
        else:
            going = {model.key: model for model in plan.victims}
            outcome = await self._remove(victim.key, {model.key for model in models} - going.keys())
            removed |= {key: going[key] for key in outcome.keys if key in going}
            for key in {victim.key, *outcome.keys}:
                await self._uses.forget(key)
                await self._holds.forget(key)
            freed = outcome.freed
        self._events.tell(
            "evicted",
            source=victim.source,
            freed_bytes=freed,
            reason=reason,
            superseded=victim.is_superseded,
        )
        return freed

    def _outcome(
        self,
        removed: Iterable[EvictionCandidate],
        freed: int,
        models: Iterable[EvictionCandidate],
        missing: int,
    ) -> Eviction:
        gone = {model.key: model.source for model in removed}
        stay = [model for model in models if model.key not in gone] if missing > 0 else []
        return Eviction(tuple(gone.values()), freed, max(missing, 0), self._kept(stay))

    def _kept(self, stay: Sequence[EvictionCandidate]) -> tuple[KeptModel, ...]:
        needed = {key: model.source for model in stay for key in model.needs}
        return tuple(KeptModel(m.source, self._surveyor.reason(m, needed)) for m in stay)

    def _full(
        self,
        more: int,
        usage: RoomUsage,
        limits: RoomLimits,
        admission: RoomDecision,
        models: Sequence[EvictionCandidate],
        source: str,
        removed: int,
    ) -> StorageFull:
        """The refusal, with the numbers of the limit that is in the way, and what could go."""
        if limits.max_bytes > 0 and more > limits.max_bytes:
            hint = "Raise max_bytes, or do without it"
        else:
            going = {model.key for model in plan_eviction(models, more).victims}
            kept = self._kept([m for m in models if m.key not in going])[:SHOWN_REASONS]
            named = ", ".join(f"{each.source} ({each.reason})" for each in kept)
            hint = f"What stays: {named}" if named else "Give the cache more room"
        waiting_helps = not admission.missing_ever
        went = f"{counted(removed, 'model')} had gone already" if removed else "nothing was removed"
        return StorageFull(
            f"{size_text(more)} more do not fit: {_use(more, usage, limits)}; "
            f"{size_text(admission.missing)} are too many, and {went}",
            missing_bytes=admission.missing,
            source=source,
            hint=hint,
            retryable=waiting_helps,
            retry_after=RETRY_SECONDS if waiting_helps else None,
        )

    async def _is_surely_under_quota(self) -> bool:
        """Whether no survey is needed to know it: not more than one in a while is made then."""
        usage = await self._meter.estimate()
        now = time.monotonic()
        if usage is not None and now - self._trimmed_at < TRIM_SECONDS:
            return usage.used + usage.claimed <= self.max_bytes
        self._trimmed_at = now
        return False

    async def _look(
        self, *, handover: float = 0.0, spared: Collection[str] = ()
    ) -> tuple[list[EvictionCandidate], RoomUsage]:
        """All models, and the use of the room at the same moment; for arguments see survey.

        A model that is published in the middle is in one of the two, or in both: so it is looked
        again, and in the end what is in doubt counts as used.
        """
        for _ in range(LOOKS):
            ended, begun = self._meter.ended_bytes, self._meter.begun_count
            models = await self._surveyor.survey(handover=handover, spared=spared)
            usage = await self._meter.measure(models, since=ended)
            if (self._meter.ended_bytes, self._meter.begun_count) == (ended, begun):
                break
        in_doubt = self._meter.in_doubt(ended, models)
        return models, replace(usage, used=usage.used + in_doubt)

    def _over_quota(self, usage: RoomUsage) -> int:
        return usage.used + usage.claimed - self.max_bytes if self.max_bytes > 0 else 0


def _use(more: int, usage: RoomUsage, limits: RoomLimits) -> str:
    """The numbers of the limit that more bytes exceed most."""
    taken = usage.used + usage.claimed
    if over_quota(usage, limits, more) >= over_disk(usage, limits, more):
        return f"of max_bytes, which is {size_text(limits.max_bytes)}, {size_text(taken)} are taken"
    return (
        f"{size_text(usage.free)} are free on the disk, of which {size_text(usage.lacking)} are "
        f"for running fetches and min_free keeps {size_text(limits.min_free)}"
    )
