"""Frees space: surveys the published models, lets the policy choose, and removes."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.daemon.administration import Eviction, KeptModel
from craftcache.sources import WatchSource, parse
from craftcached.in_use import is_in_use

from .policy import Blob, EvictionCandidate, plan_eviction, used_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import Manifest
    from craftcached.store.removal import Removed
    from craftcached.store.store import Store

    from .last_use import LastUse
    from .pins import Pins

__all__ = ["Evictor"]

log = logging.getLogger("craftcached")

GRACE_SECONDS = 3600.0
"""Time after its last use in which a blob counts as in use where the kernel cannot say."""

HANDOVER_SECONDS = 60.0
"""Time after its publication or last use in which the daemon itself does not evict a model: the
worker that waited for it may not have opened it yet."""


class Evictor:
    """Removes models to free space.

    Args:
        store: The published models.
        remove: Removes a model, given the key of its manifest, with the dependencies that only it
            has, but for those whose keys are given as well.
        pins: The models that stay.
        uses: The time of each model's last use.
        max_bytes: Bytes that all models together may take; 0 is no limit.
        clock: Returns the time in seconds since the epoch.

    Attributes:
        max_bytes: Bytes that all models together may take; may be changed at any time.
    """

    def __init__(
        self,
        *,
        store: Store,
        remove: Callable[[str, Collection[str]], Awaitable[Removed]],
        pins: Pins,
        uses: LastUse,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.max_bytes = max_bytes
        self._store = store
        self._remove = remove
        self._pins = pins
        self._uses = uses
        self._clock = clock
        # Held across a whole eviction, from the survey to the last removal: two at once would each
        # free the bytes that are wanted. Taken before the store's writing thread and the database;
        # no other lock is taken inside.
        self._turn = asyncio.Lock()
        self._told: tuple[KeptModel, ...] = ()

    async def evict(self, wanted: int | None, *, dry_run: bool) -> Eviction:
        """Free space, or say which models that would remove.

        Args:
            wanted: Bytes to free; None stands for the bytes beyond ``max_bytes``.
            dry_run: Whether nothing is removed.
        """
        async with self._turn:
            models = await self._survey()
            wanted = self._excess(models) if wanted is None else wanted
            if dry_run:
                plan = plan_eviction(models, wanted)
                return self._outcome(plan.victims, plan.freed, models, wanted - plan.freed)
            return await self._shrink(used_bytes(models) - wanted, handover=0.0)

    async def survey(self) -> list[EvictionCandidate]:
        """All models as the policy sees them."""
        return await self._survey()

    async def trim(self) -> None:
        """Evict down to ``max_bytes``, as far as there are models that may be evicted."""
        if self.max_bytes <= 0:
            return
        async with self._turn:
            outcome = await self._shrink(self.max_bytes, handover=HANDOVER_SECONDS)
        if outcome.kept and outcome.kept != self._told:
            listed = ", ".join(f"{kept.source} ({kept.reason})" for kept in outcome.kept)
            log.warning("%d bytes beyond max_bytes stay: %s", outcome.missing_bytes, listed)
        self._told = outcome.kept

    async def _shrink(self, target: int, *, handover: float) -> Eviction:
        """Remove one model after the other, surveying again before each: some come into use."""
        removed: dict[str, EvictionCandidate] = {}
        freed = 0
        while True:
            models = await self._survey(handover=handover, spared=removed)
            plan = plan_eviction(models, used_bytes(models) - target)
            if not plan.victims:
                missing = used_bytes(models) - target
                return self._outcome(removed.values(), freed, models, missing)
            victim = plan.victims[0]
            removed[victim.key] = victim
            going = {model.key: model for model in plan.victims}
            outcome = await self._remove(victim.key, {model.key for model in models} - going.keys())
            removed |= {key: going[key] for key in outcome.keys if key in going}
            for key in {victim.key, *outcome.keys}:
                await self._uses.forget(key)
            log.info("evicted %s: %d bytes freed", victim.source, outcome.freed)
            freed += outcome.freed

    def _outcome(
        self,
        removed: Iterable[EvictionCandidate],
        freed: int,
        models: Iterable[EvictionCandidate],
        missing: int,
    ) -> Eviction:
        gone = {model.key: model.source for model in removed}
        stay = [model for model in models if model.key not in gone] if missing > 0 else []
        needed = {key: model.source for model in stay for key in model.needs}
        kept = tuple(KeptModel(model.source, self._reason(model, needed)) for model in stay)
        return Eviction(tuple(gone.values()), freed, max(missing, 0), kept)

    def _reason(self, model: EvictionCandidate, needed: Mapping[str, str]) -> str:
        if self._pins.find(model.key):
            return "pinned"
        if model.key in needed:
            return f"needed by {needed[model.key]}"
        if _is_served_by_watch(model.source):
            return "served by a watch"
        if model.source.startswith("watch:"):
            return "watched"
        if model.is_kept:
            return "just used"
        if any(blob.in_use for blob in model.blobs):
            return "in use"
        return "others have the same files"

    def _excess(self, models: Iterable[EvictionCandidate]) -> int:
        return used_bytes(models) - self.max_bytes if self.max_bytes > 0 else 0

    async def _survey(
        self, *, handover: float = 0.0, spared: Collection[str] = ()
    ) -> list[EvictionCandidate]:
        """All models as the policy sees them.

        Args:
            handover: Seconds after their last use in which models stay.
            spared: Keys of models that stay: they were removed and published again since.
        """
        published = await self._store.published()
        last_uses = {
            key: max(self._uses.last(key), manifest.published_at.timestamp())
            for key, manifest in published
        }
        now = self._clock()
        blobs = await asyncio.to_thread(self._look, published, last_uses, now)
        return [
            EvictionCandidate(
                key=key,
                source=manifest.source,
                blobs=blobs[key],
                last_use=last_uses[key],
                is_kept=self._pins.find(key) is not None
                or _is_served_by_watch(manifest.source)
                or key in spared
                or max(now - last_uses[key], 0.0) < handover,  # the clock may have been set back
                needs=manifest.needed_keys,
                is_needed_only=manifest.needed_only,
                is_superseded=manifest.superseded,
            )
            for key, manifest in published
        ]

    def _look(
        self, published: Iterable[tuple[str, Manifest]], last_uses: dict[str, float], now: float
    ) -> dict[str, frozenset[Blob]]:
        """The blobs of each model; each file is examined once, whatever names it has."""
        files: dict[tuple[int, int], _File] = {}
        held: dict[str, list[_File]] = {}
        for key, manifest in published:
            held[key] = []
            for path in _paths(self._store.cache, manifest):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                identity = (status.st_dev, status.st_ino)
                file = files.setdefault(identity, _File(path, status))
                file.last_use = max(file.last_use, last_uses[key])
                held[key].append(file)
        blobs = {id(file): file.blob(now) for file in files.values()}
        return {key: frozenset(blobs[id(file)] for file in held[key]) for key in held}


def _paths(cache: CacheDir, manifest: Manifest) -> Iterator[Path]:
    """Paths of the files of a model."""
    return map(cache.path, manifest.files)


def _is_served_by_watch(source: str) -> bool:
    """Whether it is a watch's served generation, which no origin has any more."""
    parsed = parse(source)
    return isinstance(parsed, WatchSource) and parsed.generation is None


@dataclass(slots=True)
class _File:
    """A file of one or more models, and the time of the last use of any of them."""

    path: Path
    status: os.stat_result
    last_use: float = 0.0

    def blob(self, now: float) -> Blob:
        try:
            in_use = is_in_use(self.path)
        except OSError:  # removed meanwhile, or not readable for the daemon
            in_use = None
        if in_use is None:
            in_use = now - self.last_use < GRACE_SECONDS
        return Blob(self.status.st_dev, self.status.st_ino, self.status.st_size, in_use)
