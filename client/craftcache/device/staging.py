"""The page-locked buffers through which a process copies to devices.

To lock memory takes as long as to fill it several times, so the buffers are kept from one load to
the next: a few, of one size, made when they are first needed, and given back by ``close``.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from craftcache.amounts import counted
from craftcache.errors import ResourceLimit

from .pieces import PAGE_BYTES, SMALL_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .accelerator import Accelerator, Mark, PinnedBuffer

__all__ = ["StagingRing", "process_ring", "set_staging_limit"]

BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Size of a buffer: long enough that starting its copy costs little, short enough that several
threads have something to do with a small model. A power of two: torch rounds up to one."""

LEAST_BYTES: Final = 4 * SMALL_BYTES
"""Size of the smallest ring: one buffer, which holds whole small storages."""

DEFAULT_BYTES: Final = 64 * 1024 * 1024
"""Page-locked memory of a process, unless it is set: a buffer for each of 12 threads and a few that
the device copies from. All of them stay in the processor's cache, so that what is read into one is
sent on without a way through memory: with 256 MiB an H200's machine read half as fast."""

_LOOK_SECONDS: Final = 0.1
"""While others have all buffers: time after which whoever waits looks whether it still should."""


class _Idle(NamedTuple):
    """A buffer that nobody has.

    Attributes:
        kind: Kind of device that it serves.
        buffer: The buffer.
        after: The point from which no device reads from it any more; None if none does.
    """

    kind: str
    buffer: PinnedBuffer
    after: Mark | None

    def settle(self) -> bool:
        """Wait until no device reads from it; False if that is never certain."""
        try:
            if self.after is not None:
                self.after.wait()
        except Exception:  # noqa: BLE001  # whoever had it enqueued is told
            return False
        return True


class StagingRing:
    """Buffers to take and to give back; thread-safe, fork-safe.

    A buffer is with one taker at a time. It may be given back while a device reads from it yet:
    the next taker waits for that. Whoever has one already must not wait for another: with one
    each, all get on.

    Args:
        limit_bytes: Page-locked memory at most, in use and idle.
        buffer_bytes: Size of a buffer, where there is memory for several.
    """

    def __init__(
        self, limit_bytes: int = DEFAULT_BYTES, *, buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        self._most_bytes = buffer_bytes
        self.set_limit(limit_bytes)
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        # Guards what follows. Nothing blocks and no other lock is taken while it is held.
        self._changed = threading.Condition()
        self._idle: list[_Idle] = []
        """Buffers that nobody has; the last one was given back last."""
        self._count = 0
        """Buffers that there are or that are being made."""
        self._waiting = 0
        """Threads that wait for a buffer."""
        self._era = 0
        """Number of times that all were given up; buffers of an earlier era are not kept."""
        self._taken: dict[int, tuple[str, int]] = {}
        """Kind and era of each buffer that somebody has, by its id."""

    def set_limit(self, limit_bytes: int) -> None:
        """Set the limit of page-locked memory; buffers beyond it are dropped when next used.

        Raises:
            ValueError: It is too little for one buffer.
        """
        if limit_bytes < LEAST_BYTES:
            raise ValueError(
                f"{counted(limit_bytes, 'byte')} are too few: at least {LEAST_BYTES} are needed"
            )
        self.buffer_bytes = min(self._most_bytes, limit_bytes // PAGE_BYTES * PAGE_BYTES)
        self.limit = limit_bytes // self.buffer_bytes

    @property
    def held_bytes(self) -> int:
        """Page-locked memory of all buffers, in use and idle."""
        self._check_for_fork()
        return self._count * self.buffer_bytes

    @property
    def idle(self) -> int:
        """Buffers that nobody has."""
        self._check_for_fork()
        return len(self._idle)

    def take(self, accelerator: Accelerator, check: Callable[[], bool]) -> PinnedBuffer | None:
        """A buffer, as soon as there is one.

        Args:
            accelerator: What will copy from it.
            check: Says whether it is still wanted; called now and then while this waits.

        Returns:
            None if it is not wanted any more.

        Raises:
            ResourceLimit: The system gives no page-locked memory, and there is no buffer.
        """
        while check():
            if (buffer := self.take_nowait(accelerator)) is not None:
                return buffer
            with self._changed:
                self._waiting += 1
                try:
                    if not self.may_give:
                        self._changed.wait(_LOOK_SECONDS)
                finally:
                    self._waiting -= 1
        return None

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a buffer."""
        return self._waiting > 0

    @property
    def may_give(self) -> bool:
        """Whether there may be a buffer to take without waiting for another taker."""
        return bool(self._idle) or self._count < self.limit

    def take_nowait(self, accelerator: Accelerator) -> PinnedBuffer | None:
        """A buffer that is idle or may be made; None if others have as many as there may be.

        Raises:
            ResourceLimit: See take.
        """
        self._check_for_fork()
        while (idle := self._take_idle(accelerator.kind)) is not None:
            if idle.settle():
                return idle.buffer
            self.give_back(idle.buffer, clean=False)
        if not self._begin_to_make():
            return None
        return self._make(accelerator)

    def _take_idle(self, kind: str) -> _Idle | None:
        """The buffer of that kind that was given back first; a device may read from it yet."""
        with self._changed:
            for position, idle in enumerate(self._idle):
                if idle.kind == kind:
                    del self._idle[position]
                    self._taken[id(idle.buffer)] = kind, self._era
                    return idle
        return None

    def _begin_to_make(self) -> bool:
        """Count a buffer that will be made, where there is room or another kind's makes way."""
        with self._changed:
            useless = [self._idle.pop(0)] if self._idle and self._is_full() else []
            self._count -= len(useless)
            if self._is_full():
                return False
            self._count += 1
        _free(useless)
        return True

    def _is_full(self) -> bool:
        return self._count >= self.limit

    def _make(self, accelerator: Accelerator) -> PinnedBuffer | None:
        taken = accelerator.kind, self._era
        try:
            made = accelerator.pin(self.buffer_bytes)
        except BaseException as error:
            with self._changed:
                self._count -= 1
                makes_do = isinstance(error, ResourceLimit) and self._count > 0
                if makes_do:
                    self.limit = min(self.limit, self._count)
                self._changed.notify_all()
            if makes_do:
                return None
            raise
        with self._changed:
            self._taken[id(made)] = taken
        return made

    def give_back(
        self, buffer: PinnedBuffer, *, after: Mark | None = None, clean: bool = True
    ) -> None:
        """Take a buffer back from who took it.

        Args:
            buffer: The buffer.
            after: The point from which no device reads from it any more; None if none does.
            clean: Whether it may be used again; otherwise it is not kept.
        """
        self._check_for_fork()
        idle = _Idle("", buffer, after)
        with self._changed:
            kind, era = self._taken.pop(id(buffer), ("", -1))
            is_kept = (
                clean
                and era == self._era
                and self._count <= self.limit
                and len(buffer.view) <= self.buffer_bytes
            )
            if era < 0:  # taken before a fork
                _of_parents.append(idle)
            elif is_kept:
                self._idle.append(idle._replace(kind=kind))
            self._changed.notify_all()
        if era >= 0 and not is_kept:
            _free([idle], return_memory=False)
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Give the page-locked memory back to the system; what is in use is not kept afterwards.

        The next load makes new buffers.
        """
        self._check_for_fork()
        with self._changed:
            self._era += 1
            useless = self._idle
            self._idle = []
        count = len(useless)
        _free(useless)
        with self._changed:
            self._count -= count
            self._changed.notify_all()

    def _check_for_fork(self) -> None:
        """In a forked child, leave the parent's buffers alone: the device copies from them yet."""
        if self._process != os.getpid():
            _of_parents.extend(self._idle)
            self._begin()


_of_parents: Final[list[_Idle]] = []
"""In a forked child: the parent's buffers, kept because only the parent may free them."""


def _free(idle: list[_Idle], *, return_memory: bool = True) -> None:
    """Let go of buffers, when no device reads from them; empties the list."""
    for each in idle:
        each.settle()
    returns = {each.buffer.return_memory for each in idle} if return_memory else ()
    idle.clear()
    for give_memory_back in returns:
        give_memory_back()


process_ring: Final = StagingRing()
"""The ring of this process."""


def set_staging_limit(limit_bytes: int) -> None:
    """Set how many bytes of page-locked buffers this process may use to copy to devices.

    64 MiB at first. It is locked when a load to a device needs it, kept for the next one, and
    freed by Client.close. With less, fewer threads read at a time.

    Raises:
        ValueError: It is less than 256 KiB.
    """
    process_ring.set_limit(limit_bytes)
