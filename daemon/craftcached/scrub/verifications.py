"""Verifications on demand: the work of the scrub, for somebody who wants to know now.

One runs to its end though its caller goes. Who asks for the same again while it runs joins it, and
what the last ones found can be asked for afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from craftcache.daemon.administration import Outcome, Verification
from craftcache.errors import CraftcacheError, NotFound
from craftcache.wire import Progress

from .examiner import published_files
from .hashing import AtOnce, FileHasher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from craftcache.daemon.administration import Verdict
    from craftcached.events import Events

    from .examiner import Examiner, PublishedFile, PublishedModel

__all__ = ["Verifications"]

log = logging.getLogger("craftcached")

MAX_KEPT = 16
"""Verifications whose results can be asked for after their end."""


@dataclass(slots=True, eq=False)
class _Job:
    """A verification and those who listen to it; it changes on the event loop only."""

    id: int
    sources: tuple[str, ...]
    started_at: float
    files: list[PublishedFile]
    verdicts: list[Verdict] = field(default_factory=list)
    files_done: int = 0
    bytes_done: int = 0
    ended_at: float | None = None
    failure: CraftcacheError | None = None
    task: asyncio.Task[None] | None = None
    listeners: set[Callable[[Progress | Verdict], None]] = field(default_factory=set)

    def state(self) -> Verification:
        return Verification(
            self.id,
            self.sources,
            self.started_at,
            self.ended_at,
            len(self.files),
            sum(file.record.size for file in self.files),
            self.files_done,
            self.bytes_done,
            Counter(verdict.outcome for verdict in self.verdicts),
            self.failure,
        )

    def tell(self, news: Progress | Verdict) -> None:
        for listener in tuple(self.listeners):
            listener(news)


class Verifications:
    """All verifications of this daemon, by their number.

    Args:
        examiner: Examines and mends.
        events: Told of the end of each.
        clock: Returns the time in seconds since the epoch.
    """

    def __init__(
        self, examiner: Examiner, events: Events, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._examiner = examiner
        self._events = events
        self._clock = clock
        self._hasher = FileHasher()
        self._jobs: dict[int, _Job] = {}
        self._next = 1
        # One verification at a time: two would only make each other's disk seek. Held while files
        # are hashed and fetched anew; whoever waits for it holds nothing.
        self._verifying = asyncio.Lock()

    @property
    def is_running(self) -> bool:
        """Whether one runs at this moment."""
        return any(job.ended_at is None for job in self._jobs.values())

    async def close(self) -> None:
        """End those that run, between two pieces of a file."""
        running = [job.task for job in self._jobs.values() if job.task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._hasher.close()

    def all(self) -> list[Verification]:
        """Those that run, and the last ones that have ended, oldest first."""
        return [job.state() for job in self._jobs.values()]

    def find(self, number: int) -> tuple[Verification, list[Verdict]]:
        """One of them, and what it has found so far.

        Raises:
            NotFound: There is none of that number; it may have ended long ago.
        """
        job = self._job(number)
        return job.state(), list(job.verdicts)

    def start(self, models: Sequence[PublishedModel], sources: Sequence[str]) -> int:
        """Start a verification, or join the one of the same models that runs; returns its number.

        Args:
            models: The models.
            sources: The sources that were named, as shown to people; none stands for all models,
                whose manifests are looked at, too.
        """
        named = tuple(sorted(set(sources)))
        for job in self._jobs.values():
            if job.sources == named and job.ended_at is None:
                return job.id
        job = _Job(self._next, named, self._clock(), published_files(models))
        self._next += 1
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, list(models)))
        ended = [each.id for each in self._jobs.values() if each.ended_at is not None]
        for number in ended[: max(len(self._jobs) - MAX_KEPT, 0)]:
            del self._jobs[number]
        return job.id

    async def wait(self, number: int) -> tuple[Verification, list[Verdict]]:
        """Wait for the end of one of them; returns it and what it has found.

        Raises:
            NotFound: There is none of that number.
            CraftcacheError: It was given up.
        """
        job = self._job(number)
        if job.task is not None:
            await asyncio.wait([job.task])
        if job.failure is not None:
            raise job.failure
        return job.state(), list(job.verdicts)

    def when_ended(self, number: int, call: Callable[[], None]) -> None:
        """Have ``call`` called once, after the end of one of them.

        Raises:
            NotFound: There is none of that number.
        """
        job = self._job(number)
        assert job.task is not None  # noqa: S101  # start made it
        job.task.add_done_callback(lambda _: call())

    @contextlib.contextmanager
    def listening(
        self, number: int, listener: Callable[[Progress | Verdict], None]
    ) -> Iterator[None]:
        """A context in which ``listener`` is told of progress and verdicts, earlier ones first."""
        job = self._job(number)
        for verdict in job.verdicts:
            listener(verdict)
        job.listeners.add(listener)
        try:
            yield
        finally:
            job.listeners.discard(listener)

    def _job(self, number: int) -> _Job:
        job = self._jobs.get(number)
        if job is None:
            raise NotFound(f"no verification {number}", hint="GET /v1/verify lists them")
        return job

    async def _run(self, job: _Job, models: list[PublishedModel]) -> None:
        try:
            async with self._verifying:
                await self._verify(job, models)
        except asyncio.CancelledError:
            job.failure = CraftcacheError(
                "the daemon was stopped meanwhile", hint="Ask again", retryable=True
            )
            raise
        except CraftcacheError as error:
            job.failure = error
        except Exception as error:
            log.exception("a verification failed")
            job.failure = CraftcacheError(
                f"the daemon failed at it: {error}", hint="Its log says more", retryable=True
            )
        finally:
            job.ended_at = self._clock()
            found = job.state().found
            self._events.tell(
                "verified",
                files=job.files_done,
                **{outcome: found.get(outcome, 0) for outcome in get_args(Outcome)},
                whole=not job.sources and job.failure is None,
                seconds=job.ended_at - job.started_at,
            )

    async def _verify(self, job: _Job, models: list[PublishedModel]) -> None:
        if not job.sources:
            self._add(job, await self._examiner.examine_manifests())
        for file in job.files:
            shown, record, done = file.models[0].manifest.source, file.record, job.bytes_done

            def report(
                count: int, shown: str = shown, name: str = record.filename, size: int = record.size
            ) -> None:
                job.tell(Progress(shown, name, count, size, "verifying"))

            report(0)
            self._add(job, await self._examiner.examine(file, self._hasher, AtOnce(), report))
            job.files_done += 1
            job.bytes_done = done + record.size
        led_astray = []
        for model in models:
            if verdicts := await self._examiner.examine_links(model):
                self._add(job, verdicts)
                led_astray.append(model)
        for model in led_astray:
            self._add(job, await self._examiner.examine_links_again(model))

    def _add(self, job: _Job, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            job.verdicts.append(verdict)
            job.tell(verdict)
