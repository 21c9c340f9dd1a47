"""How long a worker waits for the daemon, and how its wait is cancelled."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from craftcache.errors import Unavailable

from .failures import Cancelled, DaemonUnavailable

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Iterator

    from craftcache.wire import Progress

    from .failures import Busy

__all__ = ["Call", "Deadlines", "Silence", "Restarts", "Turn", "Cancellation", "shut"]

MAX_ENDS = 5
"""Connections that may end during one request: a daemon that ends more of them is not being
restarted, the request kills it."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Time limits of the waits for the daemon, in seconds.

    Attributes:
        unasked: Wait for the first answer, before ``patience`` is called for a longer one.
        silence: Wait between two messages of a daemon that has begun to answer; it promises one
            every five seconds.
        restart: Wait for a daemon that went away during a request to come back.
        busy: Wait for a daemon that says that it is at its limits. It works for other requests:
            to go on without it would cost the origin one more download for each waiting worker.
        pause: Pause between two attempts to connect.
    """

    unasked: float = 1.0
    silence: float = 30.0
    restart: float = 10.0
    busy: float = 300.0
    pause: float = 0.05


class Silence:
    """The time that the daemon may still be silent; one for each connection of a request.

    Args:
        deadlines: The time limits.
        patience: Returns how many seconds in all the first answer may take; called when there was
            none for ``deadlines.unasked``.
    """

    __slots__ = ("_began", "_deadlines", "_extended", "_patience", "_until", "is_answering")

    def __init__(self, deadlines: Deadlines, patience: Callable[[], float]) -> None:
        self._deadlines = deadlines
        self._patience = patience
        self._began = time.monotonic()
        self._until = self._began + deadlines.unasked
        self._extended = False
        self.is_answering = False
        """Whether the daemon has begun to answer."""

    def heard(self) -> None:
        """Note that a message about the request came."""
        self.is_answering = self._extended = True
        self._began = time.monotonic()
        self._until = self._began + self._deadlines.silence

    def seconds_left(self) -> float:
        """Seconds to wait for the next message; more than 0.

        Raises:
            DaemonUnavailable: The time is up.
        """
        now = time.monotonic()
        if now >= self._until and not self._extended:
            self._extended = True
            self._until = self._began + self._patience()
        if now >= self._until:
            why = f"no word from the daemon for {now - self._began:.1f} s"
            raise DaemonUnavailable(why, kind="silent")
        return self._until - now


class Restarts:
    """The time and tries that a daemon has to come back when it goes away during a request."""

    __slots__ = ("_deadlines", "_ends", "_until")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._ends = 0
        self._until = 0.0

    @property
    def expected(self) -> bool:
        """Whether a daemon had taken the request, so that its successor is waited for."""
        return self._ends > 0

    def ended(self, *, answering: bool) -> None:
        """Note that a connection ended; if it was ``answering``, the time starts anew."""
        if answering or not self.expected:
            self._until = time.monotonic() + self._deadlines.restart
        self._ends += 1

    def wait(self, cancellation: Cancellation, why: str) -> None:
        """Wait for the pause before the next attempt.

        Raises:
            DaemonUnavailable: The time is up, or too many connections have ended.
            Cancelled: The request was cancelled.
        """
        if self._ends >= MAX_ENDS or time.monotonic() >= self._until:
            said = f"the daemon went away in the middle of the request: {why}"
            raise DaemonUnavailable(said, kind="gone")
        cancellation.pause(self._deadlines.pause)


class Turn:
    """The time that a request waits for a busy daemon to take it.

    Args:
        deadlines: The time limits.
        patience: Returns how many seconds a silent daemon may take, as for Silence. If that is at
            most ``deadlines.unasked``, because a verified copy is cached, that is all the wait.
    """

    __slots__ = ("_deadlines", "_patience", "_until")

    def __init__(self, deadlines: Deadlines, patience: Callable[[], float]) -> None:
        self._deadlines = deadlines
        self._patience = patience
        self._until: float | None = None

    def wait(self, cancellation: Cancellation, busy: Busy) -> None:
        """Wait for half to all of the time that the daemon asked for, so that workers spread out.

        Raises:
            DaemonUnavailable: The time is up.
            Cancelled: The request was cancelled.
        """
        if self._until is None:
            patience = self._patience()
            if patience > self._deadlines.unasked:
                patience = self._deadlines.busy
            self._until = time.monotonic() + patience
        if time.monotonic() >= self._until:
            raise DaemonUnavailable(str(busy), kind="busy") from busy
        cancellation.pause(busy.retry_after * random.uniform(0.5, 1.0))  # noqa: S311  # no secret


class Cancellation:
    """Cancels a waiting request from another thread; serves one request."""

    __slots__ = ("_end", "_lock", "_used")

    def __init__(self) -> None:
        # Guards _end, so that it is never called after its wait is over: its socket's number may
        # belong to another file by then. _end runs under the lock, so it must not block or take it.
        self._lock = threading.Lock()
        self._used = threading.Event()
        self._end: Callable[[], object] | None = None

    def withdraw(self) -> None:
        """Cancel the request, now or when it begins: it raises Cancelled, and the daemon stops."""
        with self._lock:
            self._used.set()
            if self._end is not None:
                self._end()

    def check(self) -> None:
        """Raise Cancelled if the request was cancelled."""
        if self._used.is_set():
            raise Cancelled

    def pause(self, seconds: float) -> None:
        """Wait for ``seconds``; raise Cancelled as soon as the request is cancelled."""
        if self._used.wait(seconds):
            raise Cancelled

    @contextlib.contextmanager
    def ending(self, end: Callable[[], object]) -> Iterator[None]:
        """A context in which ``withdraw`` calls ``end``, which ends the caller's wait at once."""
        with self._lock:
            self.check()
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None


@contextlib.contextmanager
def time_limit(cancellation: Cancellation, seconds: float | None, *, source: str) -> Iterator[None]:
    """A context that cancels a request which is not answered in time.

    Args:
        cancellation: Cancels the request.
        seconds: Time that it may take; None for as long as it takes.
        source: Named in the error.

    Raises:
        ValueError: ``seconds`` is no time.
        Unavailable: The time is up; a retry may help.
    """
    if seconds is None:
        yield
        return
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ValueError(f"timeout is {seconds!r}, and must be a number of seconds above 0")
    is_up = threading.Event()

    def end() -> None:
        is_up.set()
        cancellation.withdraw()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Cancelled as cancelled:
        if not is_up.is_set():
            raise
        raise Unavailable(
            f"not there after {seconds:g} s",
            source=source,
            hint=f"Try again, which goes on where this ended, or first craftcache warm {source}",
        ) from cancelled
    finally:
        timer.cancel()


def _ignore(_progress: Progress) -> None:
    """A report that does nothing: nobody is told of the progress."""


@dataclass(frozen=True, slots=True)
class Call:
    """The reporter and the cancellation of one request.

    Attributes:
        report: Called with each progress, in the requesting thread; an exception from it ends the
            request.
        cancellation: Cancels the request from another thread.
    """

    report: Callable[[Progress], None] = _ignore
    cancellation: Cancellation = field(default_factory=Cancellation)


def shut(sock: _socket.socket) -> None:
    """Shut a connection down for both sides, also where a forked child holds a copy of it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
