"""The background scrub: hashes every cached file again within ``scrub_days``, one at a time.

It goes on where it was after a restart: when each file was hashed last stands in the database. It
also looks at what leads to the files, and keeps the quarantine within its limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Self

from craftcache.durations import DAY_SECONDS

from .examiner import PublishedModel, published_files
from .hashing import GIVING_WAY_SECONDS, FileHasher, Paced
from .schedule import DUE_SHARE, ScheduledFile, scheduled_turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.daemon.administration import Verdict
    from craftcached.database import Database, Hashing
    from craftcached.store.quarantine import Quarantine
    from craftcached.store.store import Store

    from .examiner import Examiner, PublishedFile
    from .schedule import ScrubTurn

__all__ = ["Scrub"]

log = logging.getLogger("craftcached")

START_SECONDS = 2.0
"""Pause at the start, so that the requests that waited for the daemon go first."""

LOOK_SECONDS = 60.0
"""Longest time between two looks at what is due, as models come and go."""

STRUCTURE_SECONDS = 3600.0
"""Time between two looks at manifests and links, which takes some reads and stats a model."""

FAILURE_SECONDS = 600.0
"""Pause after a failure that is the daemon's own, or the system's."""


class Scrub:
    """The daemon's scrub; an async context manager, which works until it is left.

    Args:
        store: The published models.
        records: The database, in which the time of each file's last hashing stands.
        examiner: Examines and mends.
        quarantine: Kept within its limits.
        days: Days within which all is hashed again; 0 never does it.
        is_busy: Returns whether other work, such as a fetch, goes first at this moment.
        clock: Returns the time in seconds since the epoch.

    Attributes:
        hashed_since: Time since which every cached file has been hashed, in seconds since the
            epoch; None where nothing is cached, or nobody has looked yet.
        found: Number of verdicts since the start, by outcome.
        hashed_bytes: Bytes that were hashed since the start.
    """

    def __init__(
        self,
        *,
        store: Store,
        records: Database,
        examiner: Examiner,
        quarantine: Quarantine,
        days: float,
        is_busy: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.hashed_since: float | None = None
        self.found: dict[str, int] = {}
        self.hashed_bytes = 0
        self._days = days
        self._configured = asyncio.Event()
        self._store = store
        self._records = records
        self._examiner = examiner
        self._quarantine = quarantine
        self._is_busy = is_busy
        self._clock = clock
        self._hasher = FileHasher()
        self._structure_at = float("-inf")
        # The files that were due at the last survey and have not had their turn since.
        self._due: deque[tuple[PublishedFile, ScrubTurn]] = deque()
        self._surveyed_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._hasher.close()

    def configure(self, days: float) -> None:
        """Have all hashed again within so many days from now on; 0 never does it."""
        self._days = days
        self._due.clear()
        self._configured.set()

    async def _run(self) -> None:
        await self._pause(START_SECONDS)
        while True:
            try:
                pause = await self.step()
            except Exception:
                log.exception("the scrub pauses")
                pause = FAILURE_SECONDS
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Wait for so long, or until other days are configured."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._configured.wait()
        self._configured.clear()

    async def step(self) -> float:
        """Do what is due next, at most one file; returns the seconds until the next step."""
        await self._quarantine.trim()
        if not 0 <= self._clock() - self._structure_at < STRUCTURE_SECONDS:
            await self._examine_structure()
            self._structure_at = self._clock()
        if self._days <= 0:
            return LOOK_SECONDS
        # A survey looks at all files, so one of them serves all turns of the next minute.
        if not self._due or not 0 <= self._clock() - self._surveyed_at < LOOK_SECONDS:
            pause = await self._plan()
            if not self._due:
                return pause
        if self._gives_way(self._due[0][1]):
            return GIVING_WAY_SECONDS
        await self._examine(*self._due.popleft())
        return 0.0

    async def _plan(self) -> float:
        """Survey all files and note which are due; returns the seconds until one is."""
        files, scheduled = await self._survey()
        for file in files.values() if self._examiner.protects else ():
            if self._is_busy():  # to protect a file is to read it
                break
            await self._examiner.protect(file.record)
        self.hashed_since = min((file.hashed_at for file in scheduled), default=None)
        self._surveyed_at = now = self._clock()
        turns = scheduled_turns(scheduled, now, self._days * DAY_SECONDS)
        self._due = deque((files[turn.file.path], turn) for turn in turns if turn.at <= now)
        return min((LOOK_SECONDS, *(max(turn.at - now, 0.0) for turn in turns)))

    async def _examine(self, file: PublishedFile, turn: ScrubTurn) -> None:
        pace = Paced(
            turn.bytes_per_second,
            lambda: self._gives_way(turn),
            goes_last=turn.is_patient,
        )
        self._count(await self._examiner.examine(file, self._hasher, pace))
        self.hashed_bytes += file.record.size

    def _gives_way(self, turn: ScrubTurn) -> bool:
        return turn.is_patient and self._is_busy()

    async def _examine_structure(self) -> None:
        self._count(await self._examiner.examine_manifests())
        if mended := await self._examine_links():
            # To mend one may lead another astray, which stands in the same place.
            for model in mended + await self._examine_links():
                self._count(await self._examiner.examine_links_again(model))

    async def _examine_links(self) -> list[PublishedModel]:
        """Put right what leads to models; returns those that it was not right for."""
        found = []
        async for batch in self._store.batches():
            for key, manifest in await self._store.led_astray(batch):
                model = PublishedModel(key, manifest)
                if verdicts := await self._examiner.examine_links(model):
                    self._count(verdicts)
                    found.append(model)
        return found

    def _count(self, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            self.found[verdict.outcome] = self.found.get(verdict.outcome, 0) + 1

    async def _survey(self) -> tuple[dict[str, PublishedFile], list[ScheduledFile]]:
        """All published files by path, and when each was hashed last."""
        published, hashings = await self._store.published(), await self._records.hashings()
        # In a thread: of thousands it takes longer than a request should wait.
        period = self._days * DAY_SECONDS
        is_lost = await asyncio.to_thread(self._quarantine.lost)
        files, scheduled = await asyncio.to_thread(
            _schedule, published, hashings, is_lost, self._clock(), period
        )
        if gone := {each.path for each in hashings} - files.keys():
            await self._records.forget_hashings(gone)
        return files, scheduled


def _schedule(
    published: list[tuple[str, Manifest]],
    hashings: list[Hashing],
    is_lost: Callable[[FileRecord], bool],
    now: float,
    period: float,
) -> tuple[dict[str, PublishedFile], list[ScheduledFile]]:
    files = {
        file.record.path: file
        for file in published_files([PublishedModel(*each) for each in published])
    }
    hashed = {each.path: each for each in hashings}
    # A time to come says nothing: a clock was set back, or somebody has edited it. Such a file is
    # due now, and delayed by no such time any more once it is hashed.
    due = now - period * DUE_SHARE
    scheduled = []
    for path, file in files.items():
        came = max(_verified_at(file), 0.0)  # it was hashed when it came, too
        came = came if came <= now else due
        last = hashed.get(path)
        if last is None or last.sha256 != file.record.sha256 or last.hashed_at < came:
            at, is_broken = came, False
        else:
            at, is_broken = last.hashed_at if last.hashed_at <= now else due, last.is_broken
        lost = not is_broken and is_lost(file.record)
        scheduled.append(ScheduledFile(path, file.record.size, at, is_broken, lost))
    return files, scheduled


def _verified_at(file: PublishedFile) -> float:
    """Time of the last hashing that the manifests of a file tell of."""
    records = (
        record
        for model in file.models
        for record in model.manifest.files
        if record.path == file.record.path
    )
    return max(record.verified_at.timestamp() for record in records)
