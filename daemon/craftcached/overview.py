"""The part of the daemon's status that tells people what is warm, coming, not warm and wrong."""

from __future__ import annotations

import asyncio
import heapq
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from craftcache.full_disk import FEW_INODES, MORE_INODES, NO_INODES, free_inodes
from craftcache.wire import Disk, NotWarm, RecentModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import Manifest
    from craftcache.wire import DaemonStatus

    from .absences import Absences
    from .eviction.keepers import Keepers
    from .gpu_services import GpuServiceSockets
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


class Overview:
    """Completes a status; has no state of its own.

    Args:
        cache: The cache directory.
        warmer: Knows what is coming.
        queue: Knows when a failed warm is tried again.
        keepers: Know the quota, which models stay, and which were used last.
        watches: Know how watched directories are.
        absences: Say why models are not warm.
        gpus: The services of the node's GPUs.
    """

    def __init__(
        self,
        *,
        cache: CacheDir,
        warmer: Warmer,
        queue: WarmQueue,
        keepers: Keepers,
        watches: Watches,
        absences: Absences,
        gpus: GpuServiceSockets,
    ) -> None:
        self._cache = cache
        self._warmer = warmer
        self._queue = queue
        self._evictor = keepers.evictor
        self._pins = keepers.pins
        self._uses = keepers.uses
        self._watches = watches
        self._absences = absences
        self._gpus = gpus

    async def complete(
        self, status: DaemonStatus, published: Sequence[tuple[str, Manifest]]
    ) -> DaemonStatus:
        """The status with what people ask it for.

        Args:
            status: Numbers and places.
            published: All published models, by their manifests' keys.
        """
        disk, has_inodes = await asyncio.to_thread(_disk, self._cache.root)
        stale, not_warm = self._told_absences({manifest.source for _, manifest in published})
        completed = replace(
            status,
            coming=tuple(self._warmer.running.coming()[:LISTED]),
            not_warm=tuple(not_warm[:LISTED]),
            not_warm_count=len(not_warm),
            recent=tuple(self._recent(published)),
            disk=disk,
            max_bytes=max(self._evictor.max_bytes, 0),
            gpus=tuple(await self._gpus.reports()),
        )
        return replace(
            completed,
            problems=(
                *status.problems,
                *(() if has_inodes else (_no_inodes(status.cache_dir),)),
                *self._problems(completed),
                *_told(stale),
            ),
        )

    def _told_absences(self, warm: set[str]) -> tuple[list[NotWarm], list[NotWarm]]:
        """What could not be refreshed and is warm all the same, and what is not warm."""
        tries = self._next_tries()
        stale: list[NotWarm] = []
        missing: list[NotWarm] = []
        for each in self._absences.newest():
            told = replace(each, next_try_at=tries.get(each.source))
            (stale if each.source in warm else missing).append(told)
        return stale, missing

    def _next_tries(self) -> Mapping[str, float]:
        return {warm.source: at for warm, at in self._queue.waiting()}

    def _recent(self, published: Sequence[tuple[str, Manifest]]) -> Iterator[RecentModel]:
        used = {
            key: max(self._uses.last(key), manifest.published_at.timestamp())
            for key, manifest in published
        }
        for key, manifest in heapq.nlargest(LISTED, published, key=lambda item: used[item[0]]):
            is_pinned = self._pins.find(key) is not None
            yield RecentModel(
                manifest.source, manifest.revision, manifest.size, used[key], is_pinned
            )

    def _problems(self, status: DaemonStatus) -> Iterator[str]:
        if status.disk is not None and status.disk.free_bytes < LITTLE_BYTES:
            yield (
                f"the disk of {status.cache_dir} has {status.disk.free_bytes} bytes left: "
                "craftcache evict --bytes SIZE, or make room"
            )
        if 0 < status.max_bytes < status.bytes:
            yield (
                f"{status.bytes - status.max_bytes} bytes beyond max_bytes stay: "
                "craftcache evict --dry-run says why"
            )
        if status.quarantined:
            yield (
                f"{status.quarantined} files in {self._cache.quarantine} turned out wrong: "
                "look at the disk, then delete them; the next load brings them anew"
            )
        for report in self._watches.reports():
            if report.state == "invalid":
                yield f"watch:{report.rule.name} is invalid: {report.detail}"


def _told(stale: Sequence[NotWarm]) -> Iterator[str]:
    for each in stale[:MAX_TOLD]:
        if each.code not in ("Cancelled", "Removed", "Evicted"):
            what = f"{each.source} could not be refreshed ({each.code}: {each.message})"
            yield f"{what}: the revision of before is served. {each.hint}".rstrip()


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
