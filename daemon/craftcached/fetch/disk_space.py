"""Disk space, claimed for each download before its first byte.

What the file system reports as free is not free: running downloads will still need some of it.
A download is admitted only if it fits beside all that they lack, so that one that cannot end
never begins, and a smaller one that can is not held up by it.

A claim goes by the key of a file in staging. A model's claims are made together, before its first
byte; each download then takes over its own, and gives it back to the model until that is published.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from craftcache.amounts import size_text
from craftcache.errors import CraftcacheError, StorageFull
from craftcache.full_disk import FULL, free_bytes, storage_full

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterable, Mapping
    from pathlib import Path

    from craftcached.threads import Threads

__all__ = ["DiskSpace", "ModelClaim", "RoomPolicy", "existing", "free_bytes", "staged_bytes"]


ENDS_KEPT = 512
"""Ended claims whose published files are remembered: more than end during one survey."""


class RoomPolicy(Protocol):
    """Decides whether more bytes may come, and makes room for them."""

    async def make_room(self, more: int, *, source: str) -> bool:
        """Make sure that ``more`` bytes fit beside all that is claimed; whether any had to go.

        Raises:
            StorageFull: They do not fit.
        """
        ...


@dataclass(slots=True)
class _Claim:
    """The room of one file.

    Attributes:
        present: Bytes of it on the disk.
        lacking: Bytes that are still to be written.
        models: Number of models that hold it until they are published.
        is_fetched: Whether a download holds it.
    """

    present: int = 0
    lacking: int = 0
    models: int = 0
    is_fetched: bool = False


class ModelClaim:
    """The claims of one model's files, made together; settled once they are published.

    Args:
        claims: The claims of all its files, by key, each counted for this model already.
        new: Keys of those that no other model had, with the bytes that were on the disk.
        drop: Called with the key of a claim that this model does not hold any more.
    """

    def __init__(
        self,
        claims: Mapping[str, _Claim],
        new: Mapping[str, int],
        drop: Callable[[Hashable, frozenset[int], bool], None],
    ) -> None:
        self._claims = claims
        self._new = new
        self._drop = drop
        self._is_settled = False
        self._written = 0

    def written(self) -> int:
        """Bytes written since to those of the files that no other model had claimed before."""
        if self._is_settled:
            return self._written
        return sum(max(0, self._claims[key].present - had) for key, had in self._new.items())

    def settle(
        self, inodes: frozenset[int] = frozenset(), published: Collection[Hashable] = ()
    ) -> None:
        """Hold the claims no longer: the files are published, and count as such, or given up.

        Args:
            inodes: Inode numbers of the files as they are published; none where they are not.
            published: Keys of these files. Another model that has claimed one of them too needs no
                room for it any more.
        """
        if not self._is_settled:
            self._written = self.written()
            self._is_settled = True
            for key, claim in self._claims.items():
                claim.models -= 1
                self._drop(key, inodes, key in published)


class DiskSpace:
    """The ledger of the room that files take which are not published yet.

    Args:
        free: Returns the bytes that the file system has free for this user; may block.
        threads: Threads that ``free`` is called on; None takes the event loop's.
        directory: A directory on that file system, named in errors.

    Attributes:
        policy: Decides about each growth of the claims; None only compares with the disk.
        ended_bytes: Bytes of all claims that have ended so far; only grows.
        begun_count: Number of all claims so far; only grows.
    """

    def __init__(self, free: Callable[[], int], threads: Threads | None, directory: Path) -> None:
        self.policy: RoomPolicy | None = None
        self.ended_bytes = 0
        self.begun_count = 0
        self._published: deque[tuple[int, int, frozenset[int]]] = deque(maxlen=ENDS_KEPT)
        self._free_blocking = free
        self._directory = directory
        self._threads = threads
        self._claims: dict[Hashable, _Claim] = {}
        # Held from the decision that there is room to the claim of it, evictions in between
        # included: two at once would both be given the same bytes. Taken before
        # Evictor._evicting, and so before the store's WritersLock.
        self._deciding = asyncio.Lock()

    @property
    def lacking(self) -> int:
        """Bytes that are claimed and not written yet."""
        return sum(claim.lacking for claim in self._claims.values())

    @property
    def claimed(self) -> int:
        """Bytes of all claimed files, in the size that they will have."""
        return sum(claim.present + claim.lacking for claim in self._claims.values())

    def claimed_by(self, keys: Iterable[Hashable]) -> int:
        """Bytes of the claims with these keys, in the size that the files will have."""
        claims = (self._claims.get(key) for key in keys)
        return sum(claim.present + claim.lacking for claim in claims if claim is not None)

    @property
    def keys(self) -> frozenset[Hashable]:
        """Keys of all claimed files."""
        return frozenset(self._claims)

    async def free(self) -> int:
        """Bytes that the file system has free for this user."""
        if self._threads is None:
            return await asyncio.to_thread(self._free_blocking)
        return await self._threads.run(self._free_blocking)

    @asynccontextmanager
    async def claiming(
        self, files: Mapping[str, tuple[int, int]], *, source: str
    ) -> AsyncIterator[ModelClaim]:
        """Claim the room of a model's files, together, until the context ends or it is settled.

        Args:
            files: Bytes that each file lacks and bytes of it that are on the disk, by key.
            source: Named in errors.

        Raises:
            StorageFull: They do not fit; nothing is claimed.
        """
        async with self._deciding:
            new = {key: sizes for key, sizes in files.items() if key not in self._claims}
            await self._make_room(sum(lacking for lacking, _ in new.values()), source=source)
            for key, (lacking, present) in new.items():
                self._claims[key] = _Claim(present, lacking)
                self.begun_count += 1
            # One that a download of another model has claimed meanwhile is shared from now on.
            claims = {key: self._claims.setdefault(key, _Claim()) for key in files}
            for claim in claims.values():
                claim.models += 1
        held = ModelClaim(claims, {key: present for key, (_, present) in new.items()}, self._drop)
        try:
            yield held
        finally:
            held.settle()

    async def reserve(
        self, key: Hashable, size: int, *, source: str, present: int | None = None
    ) -> None:
        """Claim ``size`` bytes that the download of ``key`` is to write, in place of what it lacks.

        Args:
            key: Key of the file.
            size: Bytes that are still to be written.
            source: Named in errors.
            present: Bytes of the file on the disk; None if that has not changed.

        Raises:
            StorageFull: They are not there; nothing is claimed.
        """
        async with self._deciding:
            self.begun_count += key not in self._claims
            claim = self._claims.setdefault(key, _Claim())
            claim.is_fetched = True
            claim.present = claim.present if present is None else present
            # What its model has claimed is there. If others take it meanwhile, a write says so.
            is_claimed, claim.lacking = size <= claim.lacking, 0
            try:
                if not is_claimed:
                    await self._make_room(size, source=source)
            except BaseException:
                self.release(key)
                raise
            claim.lacking = size

    async def keep_ahead(self, key: Hashable, size: int, *, source: str) -> None:
        """Claim ``size`` bytes anew for ``key``, once it has written half of them.

        For a body of unknown length, which reserves as it goes: it never writes beyond what it has
        reserved, and reserves seldom.

        Raises:
            StorageFull: They are not there.
        """
        claim = self._claims.get(key)
        if claim is None or claim.lacking < size // 2:
            await self.reserve(key, size, source=source)

    def written(self, key: Hashable, size: int) -> None:
        """Note that ``size`` bytes of ``key`` were written, which the file system counts now."""
        claim = self._claims.setdefault(key, _Claim(is_fetched=True))
        claim.present += size
        claim.lacking = max(0, claim.lacking - size)

    def release(self, key: Hashable) -> None:
        """End the download's claim of ``key``; models that hold it keep what is written."""
        claim = self._claims.get(key)
        if claim is not None:
            claim.is_fetched = False
            claim.lacking = 0
            self._drop(key)

    async def recover(self, key: Hashable, error: OSError, *, source: str) -> bool:
        """Make room again after a write has failed; whether trying again may help.

        Only where the disk itself is full, and room could be made for all that is still lacking.
        """
        claim = self._claims.get(key)
        if error.errno not in FULL or claim is None or self.policy is None:
            return False
        size = max(claim.lacking, 1)
        async with self._deciding:
            claim.lacking = 0
            try:
                return await self.policy.make_room(size, source=source)
            except StorageFull:
                return False
            finally:
                claim.lacking = size

    async def error_for(self, error: OSError, key: Hashable, *, source: str) -> CraftcacheError:
        """The error that the user sees when a write failed."""
        if error.errno in FULL:
            claim = self._claims.get(key, _Claim())
            say = partial(
                storage_full,
                self._directory,
                self.lacking,
                source=source,
                error=error,
                free=await self.free(),
                least=max(claim.lacking, 1),
            )
            return await asyncio.to_thread(say)
        # A bare CraftcacheError is the daemon's own fault: a worker may still fetch for itself.
        return CraftcacheError(
            f"the staging directory fails: {error.strerror}",
            source=source,
            hint="Look at the disk of the cache directory",
        )

    async def _make_room(self, size: int, *, source: str) -> None:
        if size <= 0:
            return
        if self.policy is not None:
            await self.policy.make_room(size, source=source)
            return
        wanted = size + self.lacking  # before it is asked: what is written meanwhile counts once
        missing = wanted - await self.free()
        if missing > 0:
            raise _full(missing, source)

    def in_doubt(self, since: int, seen: Collection[int]) -> int:
        """Bytes of claims that ended after a given moment, without those of files that were seen.

        A survey may have missed the other files, if they were published while it ran.

        Args:
            since: The value of ``ended_bytes`` at that moment.
            seen: Inode numbers of the published files that the survey found.
        """
        doubtful = self.ended_bytes - since
        for after, size, inodes in self._published:
            if after > since and inodes and inodes <= set(seen):
                doubtful -= size
        return max(0, doubtful)

    def _drop(
        self,
        key: Hashable,
        inodes: frozenset[int] = frozenset(),
        is_published: bool = False,  # though another model may still hold the claim
    ) -> None:
        """End a claim that nobody holds any more, or whose file counts as published from now on."""
        claim = self._claims.get(key)
        if claim is None:
            return
        is_over = not claim.models and not claim.is_fetched
        if is_over or is_published:
            self.ended_bytes += claim.present
            self._published.append((self.ended_bytes, claim.present, inodes))
            claim.present = claim.lacking = 0
        if is_over:
            del self._claims[key]


def existing(directory: Path) -> Path:
    """``directory``, or the nearest above it that is there: a cache may have been emptied."""
    places = (directory, *directory.parents)
    return next((place for place in places if place.is_dir()), directory)


def staged_bytes(path: Path) -> int:
    """Bytes that a file in staging takes on the disk; it may be sparse. 0 where there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0
    return min(status.st_blocks * 512, status.st_size)


def _full(missing: int, source: str) -> StorageFull:
    return StorageFull(
        f"the cache's file system lacks {size_text(missing)}",
        missing_bytes=missing,
        source=source,
        hint="Remove models with craftcache rm, or give the cache more room",
    )
