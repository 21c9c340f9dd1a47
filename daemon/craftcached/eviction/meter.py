"""The use of the room: what craftcache put into the cache directory, and what others did."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from craftcached.fetch.disk_space import existing

from .policy import used_bytes
from .quota import RoomUsage

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Iterator
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcached.fetch.disk_space import DiskSpace

    from .policy import EvictionCandidate

__all__ = ["RoomMeter"]

HUB_KINDS = ("models--", "datasets--", "spaces--")
"""Beginnings of the names of huggingface_hub's directories."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """The result of the last measurement.

    Attributes:
        used: See RoomUsage.
        ended: DiskSpace.ended_bytes before the survey that it is of: what has ended since may have
            been published, and be missing in it.
    """

    used: int
    ended: int


class RoomMeter:
    """Measures the use of the room, and estimates it from above between two measurements.

    The mutable state: the last measurement, replaced as a whole on the event loop.

    Args:
        cache: The cache directory.
        space: The ledger of the room that files take which are not published yet.
    """

    def __init__(self, cache: CacheDir, space: DiskSpace) -> None:
        self._cache = cache
        self._space = space
        self._last: _Measured | None = None

    async def measure(self, models: Collection[EvictionCandidate], *, since: int) -> RoomUsage:
        """The use of the room now.

        Args:
            models: All published models, and superseded revisions.
            since: The value of ``ended_bytes`` before ``models`` were surveyed.
        """
        claimed = self._space.keys
        known = {(blob.device, blob.inode) for model in models for blob in model.blobs}
        rest, published = await asyncio.to_thread(self._private_bytes, known, claimed)
        self._last = _Measured(used_bytes(models) + rest, since)
        usage = await self._usage(self._last.used)
        # What has its final name already, while its claim is not settled yet, counts once.
        return replace(usage, claimed=usage.claimed - self._space.claimed_by(published))

    @property
    def ended_bytes(self) -> int:
        """Bytes of all ended claims; a survey may lack the files of those that end during it."""
        return self._space.ended_bytes

    def in_doubt(self, since: int, models: Collection[EvictionCandidate]) -> int:
        """Bytes of claims that have ended since, and of which it is not known what became of them.

        Args:
            since: The value of ``ended_bytes`` before ``models`` were surveyed.
            models: All models; what is published among them is counted there.
        """
        seen = {blob.inode for model in models for blob in model.blobs}
        return self._space.in_doubt(since, seen)

    @property
    def begun_count(self) -> int:
        """Number of all claims; one that begins in a survey may count twice, if it is resumed."""
        return self._space.begun_count

    async def estimate(self) -> RoomUsage | None:
        """The use of the room, and not less than it is; None before the first measurement."""
        if self._last is None:
            return None
        return await self._usage(self._last.used + self._space.ended_bytes - self._last.ended)

    async def disk(self) -> RoomUsage:
        """The use of the room as far as the disk is concerned."""
        return await self._usage(0)

    async def capacity(self) -> int:
        """Bytes of the file system, used or free."""
        status = await asyncio.to_thread(lambda: os.statvfs(existing(self._cache.staging)))
        return status.f_blocks * status.f_frsize

    async def others_bytes(self, models: Collection[EvictionCandidate]) -> int:
        """Bytes that other tools put into the cache directory; ``models`` as for measure."""
        known = {(blob.device, blob.inode) for model in models for blob in model.blobs}
        return await asyncio.to_thread(self._others_bytes, known)

    async def _usage(self, used: int) -> RoomUsage:
        """The use of the room, with ``used`` bytes and the claims of this moment.

        The ledger is read before the file system: a claim that ends while that is asked would be
        in neither, and what is written meanwhile would be neither lacking nor taken from ``free``.
        """
        claimed, lacking = self._space.claimed, self._space.lacking
        return RoomUsage(used, claimed, lacking, await self._space.free())

    def _private_bytes(
        self, known: set[tuple[int, int]], claimed: Collection[Hashable]
    ) -> tuple[int, set[str]]:
        """Bytes in our own directories, but for ``known`` files and those being fetched.

        Records and indexes are not counted: they are thousandths of a model, and nothing could be
        claimed for them beforehand. Nor is the quarantine, which has limits beside max_bytes.

        Returns:
            The bytes, and the keys of claims whose file is a known one by now.
        """
        published: set[str] = set()
        seen = set(known)
        size = sum(_new_bytes(status, seen) for _, status in _files(self._cache.private / "blobs"))
        for path, status in _files(self._cache.staging):
            names = path.relative_to(self._cache.staging).parts[:2]
            keys = {key for name in names if (key := _claim(name)) in claimed}
            if not keys:
                size += min(_new_bytes(status, seen), status.st_blocks * 512)
            elif (status.st_dev, status.st_ino) in known:
                published |= keys
        return size, published

    def _others_bytes(self, known: set[tuple[int, int]]) -> int:
        seen = set(known)
        try:
            tops = [entry.name for entry in os.scandir(self._cache.root)]
        except FileNotFoundError:
            return 0
        trees = [self._cache.root / name for name in tops if name.startswith(HUB_KINDS)]
        # Where the file system has no links, huggingface_hub keeps files in the snapshots.
        counted = (tree / name for tree in trees for name in ("blobs", "snapshots"))
        return sum(_new_bytes(status, seen) for top in counted for _, status in _files(top))


def _claim(name: str) -> str:
    """The key of the claim that a file or directory in staging belongs to."""
    return name.partition(".")[0].partition("-")[0] if name.endswith(_FETCHED) else name


_FETCHED = (".part", ".xet", ".whole", ".journal", ".new")


def _new_bytes(status: os.stat_result, seen: set[tuple[int, int]]) -> int:
    """Size of a file that was not ``seen`` yet, and now is."""
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return 0
    seen.add(identity)
    return status.st_size


def _files(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All regular files below a directory, as far as they are there when it is their turn."""
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        for path, status in _entries(directory):
            if status is None:
                waiting.append(path)
            else:
                yield path, status


def _entries(directory: Path) -> Iterable[tuple[Path, os.stat_result | None]]:
    """The regular files of a directory with their status, and its directories with None."""
    found: list[tuple[Path, os.stat_result | None]] = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                if entry.is_dir(follow_symlinks=False):
                    found.append((directory / entry.name, None))
                elif entry.is_file(follow_symlinks=False):
                    found.append((directory / entry.name, entry.stat(follow_symlinks=False)))
    return found
