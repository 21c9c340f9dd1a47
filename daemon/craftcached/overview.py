"""The part of the daemon's status that tells people what is warm, coming, not warm and wrong."""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from craftcache.amounts import counted, size_text
from craftcache.full_disk import FEW_INODES, MORE_INODES, NO_INODES, free_inodes
from craftcache.sources import parse
from craftcache.wire import Disk, NotWarm, RecentModel

from .models_here import lost_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.wire import DaemonStatus

    from .eviction.parts import EvictionParts
    from .gpu_services import GpuServiceSockets
    from .observability import Observability
    from .store.cache_lock import CacheLock
    from .warm.queue import WarmQueue
    from .warm.warmer import Warmer
    from .watch import Watches

__all__ = ["Overview"]

LISTED: Final = 16
"""Models, and sources that are not warm, that a status lists."""

LITTLE_BYTES: Final = 1_000_000_000
"""Free bytes of the disk under which there is room for no export any more."""

MAX_TOLD: Final = 4
"""Problems of one kind that are told one by one."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a look at the disk finds.

    Attributes:
        disk: Its size and what is free; None where it cannot be asked.
        has_inodes: Whether it has room for more files.
        is_emptied: Whether the cache directory was removed, or another is in its place.
        lacking: Published models of which files are missing or cut off.
        lost: Models that had vanished and are not there.
    """

    disk: Disk | None
    has_inodes: bool
    is_emptied: bool
    lacking: list[NotWarm]
    lost: list[str]


@dataclass(frozen=True, slots=True)
class _Found:
    """What is found of the models.

    Attributes:
        seen: What a look at the disk finds.
        recent: Models that were used last, and are whole.
        not_warm: What somebody wanted or had here and is not warm, newest first.
        stale: What could not be refreshed, and is warm all the same.
    """

    seen: _Seen
    recent: list[RecentModel]
    not_warm: list[NotWarm]
    stale: list[NotWarm]


class Overview:
    """Completes a status; has no state of its own.

    Args:
        cache: The cache directory.
        lock: The daemon's lock on it.
        warmer: Knows what is coming.
        queue: Knows when a failed warm is tried again.
        eviction: Knows the quota, which models stay, and which were used last.
        watches: Know how watched directories are.
        observability: Knows why models are not warm, and which are lost.
        gpus: The services of the node's GPUs.
    """

    def __init__(
        self,
        *,
        cache: CacheDir,
        lock: CacheLock,
        warmer: Warmer,
        queue: WarmQueue,
        eviction: EvictionParts,
        watches: Watches,
        observability: Observability,
        gpus: GpuServiceSockets,
    ) -> None:
        self._cache = cache
        self._lock = lock
        self._warmer = warmer
        self._queue = queue
        self._evictor = eviction.evictor
        self._pins = eviction.pins
        self._uses = eviction.uses
        self._watches = watches
        self._observability = observability
        self._gpus = gpus

    async def complete(
        self, status: DaemonStatus, published: Sequence[tuple[str, Manifest]]
    ) -> DaemonStatus:
        """The status with what people ask it for.

        Args:
            status: Numbers and places.
            published: All published models, by their manifests' keys.
        """
        found = await self._find(published)
        completed = replace(
            status,
            coming=tuple(self._warmer.running.coming()[:LISTED]),
            not_warm=tuple(found.not_warm[:LISTED]),
            not_warm_count=len(found.not_warm),
            recent=tuple(found.recent),
            disk=found.seen.disk,
            max_bytes=max(self._evictor.max_bytes, 0),
            gpus=tuple(await self._gpus.reports()),
        )
        return replace(
            completed,
            problems=(
                *status.problems,
                *(() if found.seen.has_inodes else (_no_inodes(status.cache_dir),)),
                *self._problems(completed, (await self._evictor.limits()).min_free),
                *self._told_loss(found, status),
                *_told(found.stale),
            ),
        )

    async def not_warm(self, published: Sequence[tuple[str, Manifest]]) -> list[NotWarm]:
        """All that somebody wanted or had here and is not warm, newest first.

        Args:
            published: All published models, by their manifests' keys.
        """
        return (await self._find(published)).not_warm

    async def _find(self, published: Sequence[tuple[str, Manifest]]) -> _Found:
        """Look at models, and remember which are there."""
        recent = self._last_used(published)
        present = {
            manifest.source: manifest.published_at.timestamp()
            for _, manifest in published
            if manifest.is_by_name and manifest.watched is None
        }
        wanted = {each.source for each in self._observability.absences.newest()}
        # A look at each of thousands would take longer than all else: at those that are listed,
        # and at those that somebody wanted in vain.
        listed = {manifest.source: manifest for _, manifest, _ in recent}
        listed |= {each.source: each for _, each in published if each.source in wanted}
        here = self._observability.models_here
        vanished = here.vanished(present)
        seen = await asyncio.to_thread(self._look, listed.values(), vanished)
        here.looked(present, vanished=vanished, lost=seen.lost)
        self._observability.absences.looked(present)
        lacking = {each.source for each in seen.lacking}
        whole = {manifest.source for _, manifest in published} - lacking
        stale, not_warm = self._told_absences(whole, [*seen.lacking, *self._waiting_watches()])
        warm = [model for model in map(self._recent, recent) if model.source in whole]
        return _Found(seen, warm, not_warm, stale)

    def _told_loss(self, found: _Found, status: DaemonStatus) -> Iterator[str]:
        """What is said of models that other hands removed, once for all of them."""
        lost = [each for each in found.not_warm if each.code == "Lost"]
        if status.problems or not found.seen.is_emptied:
            if lost:
                yield lost_words(len(lost), self._cache.root)
        else:
            yield _emptied(status.cache_dir)

    def _told_absences(
        self, warm: set[str], seen: Sequence[NotWarm]
    ) -> tuple[list[NotWarm], list[NotWarm]]:
        """What could not be refreshed and is warm all the same, and what is not warm.

        Args:
            warm: The sources all of whose files are there.
            seen: What is seen not to be warm; what is remembered of the same source says more.
        """
        tries = self._next_tries()
        stale: list[NotWarm] = []
        missing: list[NotWarm] = []
        remembered = self._observability.not_warm()
        known = {each.source for each in remembered}
        for each in (*(each for each in seen if each.source not in known), *remembered):
            at = tries.get(each.source)
            told = each if at is None else replace(each, next_try_at=at)
            (stale if each.source in warm else missing).append(told)
        return stale, missing

    def _next_tries(self) -> Mapping[str, float]:
        return {warm.source: at for warm, at in self._queue.waiting()}

    def _last_used(
        self, published: Sequence[tuple[str, Manifest]]
    ) -> list[tuple[str, Manifest, float]]:
        """The models that were used last, or published, with the time of that."""
        used = [
            (key, manifest, max(self._uses.last(key), manifest.published_at.timestamp()))
            for key, manifest in published
        ]
        return heapq.nlargest(LISTED, used, key=itemgetter(2))

    def _recent(self, used: tuple[str, Manifest, float]) -> RecentModel:
        key, manifest, at = used
        is_pinned = self._pins.find(key) is not None
        return RecentModel(manifest.source, manifest.revision, manifest.size, at, is_pinned)

    def _look(self, listed: Iterable[Manifest], vanished: Iterable[str]) -> _Seen:
        """Look at the disk; blocks.

        Args:
            listed: Manifests of the models whose files are looked at.
            vanished: Models that seem to be gone.
        """
        disk, has_inodes = _disk(self._cache.root)
        return _Seen(
            disk,
            has_inodes,
            is_emptied=self._lock.is_gone(),
            lacking=[found for each in listed if (found := _lacking(self._cache, each))],
            lost=[each for each in vanished if self._cache.manifest(parse(each)) is None],
        )

    def _waiting_watches(self) -> Iterator[NotWarm]:
        """Watches that have nothing to serve, as their directory is not there or not whole."""
        for report in self._watches.reports():
            if report.served is None and report.state in ("absent", "gone", "partial"):
                yield NotWarm(
                    f"watch:{report.rule.name}",
                    report.state.capitalize(),
                    report.detail,
                    f"Export to {report.rule.directory}; it is taken when both files are whole",
                    report.since,
                )

    def _problems(self, status: DaemonStatus, min_free: int) -> Iterator[str]:
        if status.disk is not None and status.disk.free_bytes < max(min_free, LITTLE_BYTES):
            kept = f", and min_free keeps {size_text(min_free)}" if min_free else ""
            yield (
                f"the disk of {self._cache.root} has {size_text(status.disk.free_bytes)} left"
                f"{kept}: what is not here is refused, unless models can go for it; make room, "
                "or craftcache evict --bytes SIZE"
            )
        if 0 < status.max_bytes < status.bytes:
            beyond = size_text(status.bytes - status.max_bytes)
            yield f"{beyond} beyond max_bytes stay: craftcache evict --dry-run says why"
        if status.quarantined:
            wrong = (
                f"{counted(status.quarantined, 'file')} of {size_text(status.quarantined_bytes)}"
            )
            yield (
                f"{wrong} turned out wrong, set aside in {self._cache.quarantine}: the disk may be "
                "failing; craftcache quarantine ls lists what it was, quarantine rm removes it"
            )
        for report in self._watches.reports():
            if report.state == "invalid":
                yield f"watch:{report.rule.name} is invalid: {report.detail}"


def _told(stale: Sequence[NotWarm]) -> Iterator[str]:
    for each in stale[:MAX_TOLD]:
        if each.code not in ("Cancelled", "Removed", "Evicted", "Lost"):
            what = f"{each.source} could not be refreshed ({each.code}: {each.message})"
            yield f"{what}: the revision of before is served. {each.hint}".rstrip()


def _emptied(cache_dir: str) -> str:
    return (
        f"{cache_dir} was emptied or removed under the daemon: see whether its file system is "
        "mounted. The next warm makes it anew; warm again what was there"
    )


def _lacking(cache: CacheDir, manifest: Manifest) -> NotWarm | None:
    """What is to be told of a published model if files of it are missing or cut off."""
    lacks = [file.filename for file in manifest.files if not _is_there(cache, file)]
    if not lacks:
        return None
    source, are = manifest.source, "are" if len(lacks) > 1 else "is"
    message = f"{' and '.join(lacks)} {are} missing from the cache, or cut off"
    return NotWarm(source, "Damaged", message, f"craftcache warm {source}", time.time())


def _is_there(cache: CacheDir, record: FileRecord) -> bool:
    """Whether a file is there in its whole size; whether it was touched, its next load finds."""
    try:
        return os.stat(cache.path_text(record)).st_size == record.size
    except OSError:
        return False


def _disk(directory: Path) -> tuple[Disk | None, bool]:
    """The disk, and whether it has room for more files, of whatever size."""
    try:
        status = os.statvfs(directory)
        inodes = free_inodes(directory)
    except OSError:
        return None, True
    disk = Disk(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)
    return disk, inodes is None or inodes >= FEW_INODES


def _no_inodes(cache_dir: str) -> str:
    return f"the file system of {cache_dir} {NO_INODES}. {MORE_INODES}"
