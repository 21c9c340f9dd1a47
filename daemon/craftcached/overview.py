"""The part of the daemon's status that tells people what is warm, coming, not warm and wrong."""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from craftcache.full_disk import FEW_INODES, MORE_INODES, NO_INODES, free_inodes
from craftcache.wire import Disk, NotWarm, RecentModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.wire import DaemonStatus

    from .absences import Absences
    from .eviction.keepers import Keepers
    from .gpu_services import GpuServiceSockets
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


MAX_GONE: Final = 64
"""Models of those that are gone that are told of."""


class Overview:
    """Completes a status.

    Its state is which models were seen at the last look, and which of those are gone since. It
    changes on the event loop, in steps without an await.

    Args:
        cache: The cache directory.
        lock: The daemon's lock on it.
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
        lock: CacheLock,
        warmer: Warmer,
        queue: WarmQueue,
        keepers: Keepers,
        watches: Watches,
        absences: Absences,
        gpus: GpuServiceSockets,
    ) -> None:
        self._cache = cache
        self._lock = lock
        self._seen: set[str] = set()
        self._gone: dict[str, float] = {}
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
        recent = self._last_used(published)
        lacking = await asyncio.to_thread(self._lacking, recent, published)
        lost = self._lost(published)
        whole = {manifest.source for _, manifest in published} - {each.source for each in lacking}
        stale, not_warm = self._told_absences(whole, [*lacking, *lost, *self._waiting_watches()])
        completed = replace(
            status,
            coming=tuple(self._warmer.running.coming()[:LISTED]),
            not_warm=tuple(not_warm[:LISTED]),
            not_warm_count=len(not_warm),
            recent=tuple(model for model in map(self._recent, recent) if model.source in whole),
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
                *(() if status.problems else self._emptied()),
                *_told(stale),
            ),
        )

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
        remembered = self._absences.newest()
        known = {each.source for each in remembered}
        for each in (*(each for each in seen if each.source not in known), *remembered):
            told = replace(each, next_try_at=tries.get(each.source))
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

    def _lacking(
        self,
        recent: Sequence[tuple[str, Manifest, float]],
        published: Sequence[tuple[str, Manifest]],
    ) -> list[NotWarm]:
        """Published models of which files are missing or cut off; blocks.

        Looked at are those that are listed, and those that somebody wanted in vain: a look at each
        of thousands would take longer than all else.
        """
        wanted = {each.source for each in self._absences.newest()}
        listed = {manifest.source: manifest for _, manifest, _ in recent}
        listed |= {each.source: each for _, each in published if each.source in wanted}
        found = []
        for source, manifest in listed.items():
            lacks = [file.filename for file in manifest.files if not _is_there(self._cache, file)]
            if lacks:
                message = f"{' and '.join(lacks)} is missing from the cache, or cut off"
                hint = f"craftcache warm {source}"
                found.append(NotWarm(source, "Damaged", message, hint, time.time()))
        return found

    def _lost(self, published: Sequence[tuple[str, Manifest]]) -> Iterator[NotWarm]:
        """Models that were here at an earlier look, and that the daemon did not remove."""
        here = {
            manifest.source
            for _, manifest in published
            if manifest.is_by_name and manifest.watched is None
        }
        for source in self._seen - here:
            self._gone.setdefault(source, time.time())
        self._gone = {source: at for source, at in self._gone.items() if source not in here}
        self._seen = here
        for source, at in list(self._gone.items())[-MAX_GONE:]:
            message = f"its files are gone from {self._cache.root}"
            yield NotWarm(source, "Lost", message, f"craftcache warm {source}", at)

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

    def _emptied(self) -> Iterator[str]:
        if self._lock.is_gone():
            yield (
                f"{self._cache.root} was emptied or removed under the daemon: see whether its file "
                "system is mounted. The next warm makes it anew; warm again what was there"
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
                f"{status.quarantined} files turned out wrong and are set aside in "
                f"{self._cache.quarantine}: look at the disk; craftcache quarantine ls lists them"
            )
        for report in self._watches.reports():
            if report.state == "invalid":
                yield f"watch:{report.rule.name} is invalid: {report.detail}"


def _told(stale: Sequence[NotWarm]) -> Iterator[str]:
    for each in stale[:MAX_TOLD]:
        if each.code not in ("Cancelled", "Removed", "Evicted"):
            what = f"{each.source} could not be refreshed ({each.code}: {each.message})"
            yield f"{what}: the revision of before is served. {each.hint}".rstrip()


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
