"""From a quiet directory to a generation.

    copy and hash -> inspect -> gate -> publish -> serve

Workers see nothing new before the last step. A pair that fails at any of them is never served.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from craftcache.cache.durable import make_directory
from craftcache.errors import NotACheckpoint, UnsafeCheckpoint

from .copying import copy_pair, pair_bytes
from .gate import ask_gate
from .snapshot import stamp

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator

    from craftcache.cache.publish import Verified
    from craftcache.watch_rule import WatchRule
    from craftcached.fetch.disk_space import DiskSpace, ModelClaim
    from craftcached.store.store import Store

    from .snapshot import Snapshot, Target

__all__ = ["Candidate", "CandidateInspector", "CandidateMaker", "Refused"]

AT_ONCE = 2
"""Directories that are copied at the same time: more would only share the disk."""


class CandidateInspector(Protocol):
    """Says whether a checkpoint is safe to load; see inspect.Inspector."""

    async def inspect(self, path: Path, *, source: str) -> bytes:
        """Its index, or why there is none."""
        ...


class Refused(Exception):
    """The gate did not let a candidate pass; the text says why."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A verified pair that is not published yet.

    Attributes:
        files: Verified files by name.
    """

    files: dict[str, Verified]

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of each file."""
        return {name: file.digests.sha256 for name, file in self.files.items()}


class CandidateMaker:
    """Makes candidates; one instance a daemon.

    Args:
        store: The store, in whose staging the copies are made, and which keeps the indexes.
        inspector: Inspects the copies.
        space: The ledger of the room that files take which are not published yet; None for none.
    """

    def __init__(
        self, store: Store, inspector: CandidateInspector, space: DiskSpace | None = None
    ) -> None:
        self._space = space
        self._store = store
        self._inspector = inspector
        # Limits the candidates that exist at once; held from the copy until publication. Taken
        # before the inspector's slots, Publisher's lock and WarmQueue's lock.
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._staging = store.cache.staging / "watch"

    def clear(self) -> None:
        """Remove the files of a killed predecessor; blocks."""
        shutil.rmtree(self._staging, ignore_errors=True)
        self._staging.mkdir(mode=0o755)

    @contextlib.asynccontextmanager
    async def candidate(
        self, rule: WatchRule, target: Target, seen: Snapshot, stop: threading.Event
    ) -> AsyncIterator[Candidate]:
        """Copy, hash and inspect a snapshot's pair, and ask the gate; removed with the context.

        Args:
            rule: Rule of the watch.
            target: Directory of the watch.
            seen: Snapshot that was quiet for long enough.
            stop: Set to make the copy give up.

        Raises:
            FilesChanged: The directory does not match the snapshot any more.
            UnsafeCheckpoint, NotACheckpoint: One of the files cannot be loaded safely.
            Refused: The gate refuses the pair.
            StorageFull, Unavailable, OSError: Nothing is wrong with the files themselves.
        """
        async with self._slots:
            directory = Path(await asyncio.to_thread(self._make_directory))
            try:
                async with self._room_for(directory, rule, target, seen) as claim:
                    candidate = await self._prepare(rule, target, seen, directory, stop)
                    yield candidate
                    if claim is not None:
                        claim.settle()  # published, or in the way no longer
                    for file in candidate.files.values():
                        await self._store.discard(file)
            finally:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def _room_for(
        self, directory: Path, rule: WatchRule, target: Target, seen: Snapshot
    ) -> AsyncIterator[ModelClaim | None]:
        """A context in which the room of the copies is theirs; it goes by their directory's name.

        Raises:
            StorageFull: There is none.
        """
        if self._space is None:
            yield None
            return
        size = await asyncio.to_thread(pair_bytes, target, seen)
        claim = {directory.name: (size, 0)}
        async with self._space.claiming(claim, source=f"watch:{rule.name}") as held:
            yield held

    def _make_directory(self) -> str:
        make_directory(self._staging)  # an administrator may have emptied the cache
        return tempfile.mkdtemp(dir=self._staging)

    async def _prepare(
        self,
        rule: WatchRule,
        target: Target,
        seen: Snapshot,
        directory: Path,
        stop: threading.Event,
    ) -> Candidate:
        copying = asyncio.create_task(
            asyncio.to_thread(copy_pair, target, rule.marker, seen, directory, stop.is_set)
        )
        try:
            copied = await asyncio.shield(copying)
        except asyncio.CancelledError:
            stop.set()  # a thread cannot be cancelled, and it must not write on
            await asyncio.gather(copying, return_exceptions=True)
            raise
        if self._space is not None:
            size = sum(file.digests.size for file in copied.values())
            self._space.written(directory.name, size)
        for name, file in copied.items():
            try:
                await self._inspect(rule, file)
            except (NotACheckpoint, UnsafeCheckpoint) as error:
                raise error.in_file(name) from error
        if rule.gate is not None:
            await _pass_gate(rule.gate, directory, rule.name, copied)
        return Candidate({name: await self._known(file) for name, file in copied.items()})

    async def _inspect(self, rule: WatchRule, file: Verified) -> None:
        """Refuse a checkpoint that is unsafe to load; write the index of one that is safe."""
        sha256 = file.digests.sha256
        if not await self._store.index_files.has(sha256, file.digests.size):
            index = await self._inspector.inspect(file.path, source=f"watch:{rule.name}")
            await self._store.index_files.write(sha256, index)

    async def _known(self, file: Verified) -> Verified:
        """The same bytes from another model, if one has them, so that both share one file."""
        found = await self._store.local.find(file.digests.sha256, file.path.parent)
        return file if found is None else replace(file, file=found.file)


async def _pass_gate(command: str, directory: Path, name: str, copied: dict[str, Verified]) -> None:
    before = [stamp(os.stat(file.path)) for file in copied.values()]
    if reason := await ask_gate(command, directory, name):
        raise Refused(reason)
    if [stamp(os.stat(file.path)) for file in copied.values()] != before:
        raise Refused("the gate changed the candidate")
