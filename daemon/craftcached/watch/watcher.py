"""One watched directory: looked at, taken when it is quiet, published when it is verified."""

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
"""Least time between two looks, however many hints there are."""

REVIEW_SECONDS = 30.0
"""Most time between two looks: writes through a shared map, for one, give no hints."""

POLL_SECONDS = 5.0
"""Most time between two looks without reliable hints; half the settle time if that is less."""

IDENTITY_SECONDS = 1.0
"""Timeout of one look at whether a directory still is the one that is watched."""

RETRY_SECONDS = 60.0
"""Time until a pair is tried again that failed through no fault of its own."""


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a watch at one moment.

    Attributes:
        rule: Rule of the watch.
        state: State of the watch; see craftcached.watch.state.
        detail: Explanation of the state for people; may be empty.
        since: Time when the state began, in seconds since the epoch.
        polled: Reason why the directory is polled; None where inotify reports its changes.
        served: The generation that is served, or None.
        newest: The generation that was published last, or None.
        numbers: Numbers of all published generations, oldest first.
        is_held: Whether the served generation stays though newer ones come, after a rollback.
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
    """Is told of a watch's changes; its methods are called on the event loop."""

    def situation_changed(self, watcher: Watcher) -> None:
        """The watch's state or detail has changed."""
        ...

    async def candidate_verified(self, watcher: Watcher, candidate: Candidate) -> None:
        """A pair is verified: publish it unless the newest generation has the same bytes."""
        ...


class Watcher:
    """Watches one directory for as long as ``run`` runs.

    Args:
        rule: Rule of the watch, with its own name and directory.
        target: The directory.
        generations: The generations of this watch.
        maker: Makes and verifies candidates.
        observer: Gives hints of changes.
        listener: The listener, told of changes of state and of verified candidates.
        threads: Threads that look at the directory, as its file system may hang.
    """

    def __init__(
        self,
        rule: WatchRule,
        target: Target,
        *,
        generations: Generations,
        maker: CandidateMaker,
        observer: InotifyObserver,
        listener: WatchListener,
        threads: Executor,
    ) -> None:
        self.rule = rule
        self.generations = generations
        self.is_held = False
        self._target = target
        self._maker = maker
        self._listener = listener
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

    @property
    def is_daemons_fault(self) -> bool:
        """Whether the pair is no generation only because the daemon failed at it."""
        return self._situation.is_daemons_fault

    async def is_at(self, device: int, inode: int) -> bool:
        """Whether the directory that is watched has this device and inode at this moment."""
        looking = self._loop.run_in_executor(self._threads, self._target.identity)
        try:
            async with asyncio.timeout(IDENTITY_SECONDS):
                return await looking == (device, inode)
        except TimeoutError:  # a file system hangs, and a worker would not see its files either
            return False

    def report(self) -> Report:
        """The state of the watch now."""
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
        """Note that the directory may have changed; may be called from any thread, at any rate."""
        if not self._has_hint:
            self._has_hint = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._hinted.set)

    def take_again(self) -> bool:
        """Make a generation of the directory again: the one made of it before is lost.

        Returns:
            Whether there was one, and none is being made already.
        """
        if self._situation.in_hand is not None or self._situation.state != "ready":
            return False
        self._become(self._situation.forgotten())
        self.hint()
        return True

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
        """Look; look again if inotify watches a place only since the first look."""
        self._has_hint = False
        self._hinted.clear()

        def look_and_turn() -> Snapshot:
            seen = look(self._target, self.rule.marker)
            if self.rule.poll or not self._attention.listen_to(self._places(seen)):
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
        """Wait until a hint, until the next look is due, or until the pair is due to be taken."""
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
            self._listener.situation_changed(self)

    def _take(self) -> None:
        self._become(self._situation.took())
        self._stop = threading.Event()
        self._making = asyncio.create_task(self._make(self._situation.look))

    async def _make(self, seen: Snapshot) -> None:
        """Make a generation of a snapshot; however it ends, the state is not left in hand."""
        try:
            async with self._maker.candidate(
                self.rule, self._target, seen, self._stop
            ) as candidate:
                await self._listener.candidate_verified(self, candidate)
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
        """Refuse the files: for good if they are at fault, else until the next try."""
        reason = error.message if isinstance(error, CraftcacheError) else str(error)
        is_theirs = isinstance(error, NotACheckpoint | UnsafeCheckpoint)
        if isinstance(error, CraftcacheError) and error.hint and is_theirs:
            reason = f"{reason}. {error.hint}"
        retry_at = None if is_theirs else time.monotonic() + RETRY_SECONDS
        log.warning("watch %s: no generation: %s", self.rule.name, reason)
        self._become(self._situation.refused(reason, retry_at))
