"""One watched directory: looked at, taken when it is quiet, published when it is right."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from craftcache.errors import CraftcacheError, NotACheckpoint, UnsafeCheckpoint

from .candidate import Refused
from .copying import FilesChanged
from .generations import pair_of
from .inotify import WatchedPlace
from .snapshot import look
from .state import WatchState

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from craftcache.cache.manifest import Manifest
    from craftcache.watch_rule import WatchRule

    from .candidate import Candidate, CandidateMaker
    from .generations import Generations
    from .inotify import Attention, InotifyObserver
    from .snapshot import Snapshot, Target
    from .state import State

__all__ = ["WatchListener", "Watcher", "Report"]

log = logging.getLogger("craftcached")

PAUSE_SECONDS = 0.1
"""Between two looks at least, however many hints there are."""

REVIEW_SECONDS = 30.0
"""Between two looks at most: writes through a shared map, for one, give no hints."""

POLL_SECONDS = 5.0
"""Between two looks at most where hints cannot be relied upon; half the settle time if shorter."""

IDENTITY_SECONDS = 1.0
"""For one look at whether a directory still is the one that is watched."""

RETRY_SECONDS = 60.0
"""Until a state is tried again that failed for no fault of its own."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a watch is.

    Attributes:
        rule: What was asked for.
        state: See settling.
        detail: What there is to say about it; may be empty.
        since: When the state began, in seconds since the epoch.
        polled: Why the directory is looked at in intervals; None where the kernel tells of changes.
        served: The generation that is served, or None.
        newest: The one that was made last, or None.
        numbers: Of all generations that are there, oldest first.
        is_held: Whether the one that is served stays, whatever is made, after a rollback.
    """

    rule: WatchRule
    state: State
    detail: str
    since: float
    polled: str | None
    served: Manifest | None
    newest: Manifest | None
    numbers: tuple[int, ...]
    is_held: bool


class WatchListener(Protocol):
    """Who is told of what becomes of a watch; on the event loop."""

    def situation_changed(self, watcher: Watcher) -> None:
        """Its state or detail is another."""
        ...

    async def candidate_verified(self, watcher: Watcher, candidate: Candidate) -> None:
        """A pair is right and its content new; publishes it."""
        ...


class Watcher:
    """Watches one directory for as long as ``run`` runs.

    Args:
        rule: What was asked for, with the watch's own name and directory.
        target: The directory.
        generations: Those of this watch.
        maker: Verifies what is to be one.
        observer: Gives hints.
        hears: Is told.
        threads: For looking: a file system may hang.
    """

    def __init__(
        self,
        rule: WatchRule,
        target: Target,
        *,
        generations: Generations,
        maker: CandidateMaker,
        observer: InotifyObserver,
        hears: WatchListener,
        threads: Executor,
    ) -> None:
        self.rule = rule
        self.generations = generations
        self.is_held = False
        self._target = target
        self._maker = maker
        self._hears = hears
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        newest = generations.newest
        self._situation = WatchState(
            rule.settle,
            was_there=newest is not None,
            judged=pair_of(newest, target.path),
        )
        self._told = (self._situation.state, "")
        self._since = time.time()
        self._hinted = asyncio.Event()
        self._has_hint = False
        self._attention: Attention = observer.attention(self.hint)
        self._making: asyncio.Task[None] | None = None
        self._stop = threading.Event()

    @property
    def directory(self) -> tuple[int, int] | None:
        """Device and inode of the directory as it was seen last."""
        return self._situation.look.directory

    async def is_at(self, device: int, inode: int) -> bool:
        """Whether the directory that is watched has this device and inode at this moment."""
        looking = self._loop.run_in_executor(self._threads, self._target.identity)
        try:
            async with asyncio.timeout(IDENTITY_SECONDS):
                return await looking == (device, inode)
        except TimeoutError:  # a file system hangs, and a worker would not see its files either
            return False

    def report(self) -> Report:
        """How the watch is now."""
        return Report(
            self.rule,
            self._situation.state,
            self._situation.detail,
            self._since,
            "as was asked for" if self.rule.poll else self._attention.blind_spot,
            self.generations.served,
            self.generations.newest,
            self.generations.numbers,
            self.is_held,
        )

    def hint(self) -> None:
        """Something may have changed; from any thread, at any rate."""
        if not self._has_hint:
            self._has_hint = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._hinted.set)

    def take_again(self) -> None:
        """Make another generation of what is there: the one that was made of it is lost."""
        if self._situation.in_hand is None and self._situation.state == "ready":
            self._become(self._situation.forgotten())
            self.hint()

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                seen = await self._look()
                now = time.monotonic()
                self._become(self._situation.saw(seen, now))
                if self._situation.in_hand not in (None, seen.pair):
                    self._stop.set()  # what is being copied has changed
                due = self._situation.due_at
                if due is not None and due <= now:
                    self._take()
                await self._wait()
        finally:
            self._attention.close()
            if self._making is not None:
                self._making.cancel()
                await asyncio.gather(self._making, return_exceptions=True)

    async def _look(self) -> Snapshot:
        """Look, and again where a place was turned to only after the first look."""
        self._has_hint = False
        self._hinted.clear()

        def look_and_turn() -> Snapshot:
            seen = look(self._target, self.rule.marker)
            if self.rule.poll or not self._attention.turn_to(self._places(seen)):
                return seen
            return look(self._target, self.rule.marker)

        blind_spot = self._attention.blind_spot
        seen = await self._loop.run_in_executor(self._threads, look_and_turn)
        if self._attention.blind_spot not in (None, blind_spot):
            log.warning(
                "watch %s: %s, so %s is looked at every %g s instead",
                self.rule.name,
                self._attention.blind_spot,
                self._target.path,
                self._interval(),
            )
        return seen

    def _places(self, seen: Snapshot) -> list[WatchedPlace]:
        path = self._target.path
        places = [WatchedPlace.nearest(path)]
        if seen.directory is not None:
            places.append(WatchedPlace(path, seen.directory[1]))
        return [place for place in places if place is not None]

    async def _wait(self) -> None:
        """Until there may be something new to see, or it is time to take what was seen."""
        await asyncio.sleep(PAUSE_SECONDS)
        seconds = self._interval()
        if (due := self._situation.due_at) is not None:
            seconds = min(seconds, due - time.monotonic())
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._hinted.wait()

    def _interval(self) -> float:
        if self.rule.poll or self._attention.blind_spot is not None:
            return min(POLL_SECONDS, self.rule.settle / 2)
        return REVIEW_SECONDS

    def _become(self, situation: WatchState) -> None:
        self._situation = situation
        telling = (situation.state, situation.detail)
        if telling != self._told:
            self._told = telling
            self._since = time.time()
            self._hears.situation_changed(self)

    def _take(self) -> None:
        self._become(self._situation.took())
        self._stop = threading.Event()
        self._making = asyncio.create_task(self._make(self._situation.look))

    async def _make(self, seen: Snapshot) -> None:
        """Make a generation of what was seen; whatever happens, nothing is left in hand."""
        try:
            async with self._maker.candidate(
                self.rule, self._target, seen, self._stop
            ) as candidate:
                await self._hears.candidate_verified(self, candidate)
            self._become(self._situation.published())
        except FilesChanged:
            self._become(self._situation.changed(time.monotonic()))
        except Refused as error:
            self._become(self._situation.refused(str(error)))
        except (CraftcacheError, OSError) as error:
            self._fail(error)
        except Exception as error:
            log.exception("watch %s", self.rule.name)
            self._fail(error)
        finally:
            self.hint()

    def _fail(self, error: Exception) -> None:
        """Refuse the files for good only where the fault is theirs."""
        reason = error.message if isinstance(error, CraftcacheError) else str(error)
        is_theirs = isinstance(error, NotACheckpoint | UnsafeCheckpoint)
        if isinstance(error, CraftcacheError) and error.hint and is_theirs:
            reason = f"{reason}. {error.hint}"
        retry_at = None if is_theirs else time.monotonic() + RETRY_SECONDS
        log.warning("watch %s: no generation: %s", self.rule.name, reason)
        self._become(self._situation.refused(reason, retry_at))
