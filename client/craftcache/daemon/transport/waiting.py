"""How long a worker waits for the daemon, and how it is called off."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .failures import Cancelled, DaemonBroken, DaemonSilent

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Iterator

__all__ = ["Deadlines", "Silence", "Restarts", "Cancellation", "shut"]

MAX_ENDS = 5
"""Connections that may end under one request: a daemon that ends more is not being restarted, it
dies of the request."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long to wait for what, in seconds.

    Attributes:
        unasked: For the first answer, before the caller is asked how long it can wait.
        silence: Between two messages of a daemon that has begun to answer; it promises one every
            five seconds.
        restart: For a daemon that went away in the middle of a request.
        pause: Between two attempts to connect to it.
    """

    unasked: float = 1.0
    silence: float = 30.0
    restart: float = 10.0
    pause: float = 0.05


class Silence:
    """How much longer the daemon may say nothing; one for each connection of a request.

    Args:
        deadlines: What the waits are.
        patience: How many seconds in all the first answer may take; called when there was none
            for ``deadlines.unasked``.
    """

    __slots__ = ("_began", "_deadlines", "_extended", "_patience", "_until", "is_broken")

    def __init__(self, deadlines: Deadlines, patience: Callable[[], float]) -> None:
        self._deadlines = deadlines
        self._patience = patience
        self._began = time.monotonic()
        self._until = self._began + deadlines.unasked
        self._extended = False
        self.is_broken = False
        """Whether the daemon has begun to answer."""

    def heard(self) -> None:
        """The daemon said something about the request."""
        self.is_broken = self._extended = True
        self._began = time.monotonic()
        self._until = self._began + self._deadlines.silence

    def seconds_left(self) -> float:
        """How long to wait for the next message; more than nothing.

        Raises:
            DaemonSilent: It has been waited for long enough.
        """
        now = time.monotonic()
        if now >= self._until and not self._extended:
            self._extended = True
            self._until = self._began + self._patience()
        if now >= self._until:
            raise DaemonSilent(f"no word from the daemon for {now - self._began:.1f} s")
        return self._until - now


class Restarts:
    """What a daemon is allowed that goes away in the middle of a request."""

    __slots__ = ("_deadlines", "_ends", "_until")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._ends = 0
        self._until = 0.0

    @property
    def expected(self) -> bool:
        """Whether a daemon had taken the request and may come back for it."""
        return self._ends > 0

    def ended(self, *, answering: bool) -> None:
        """A connection ended; a daemon that had been ``answering`` has all its time again."""
        if answering or not self.expected:
            self._until = time.monotonic() + self._deadlines.restart
        self._ends += 1

    def wait(self, cancellation: Cancellation, why: str) -> None:
        """Wait a moment before the next attempt.

        Raises:
            DaemonBroken: The daemon has had its time or its tries.
            Cancelled: The request was withdrawn.
        """
        if self._ends >= MAX_ENDS or time.monotonic() >= self._until:
            raise DaemonBroken(f"the daemon went away in the middle of the request: {why}")
        cancellation.pause(self._deadlines.pause)


class Cancellation:
    """Lets another thread end a waiting request; good for one."""

    __slots__ = ("_end", "_lock", "_used")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used = threading.Event()
        self._end: Callable[[], object] | None = None

    def withdraw(self) -> None:
        """End the request, now or when it begins: it raises Cancelled, and the daemon stops."""
        with self._lock:
            self._used.set()
            if self._end is not None:
                self._end()

    def check(self) -> None:
        """Raise Cancelled if the request was withdrawn."""
        if self._used.is_set():
            raise Cancelled

    def pause(self, seconds: float) -> None:
        """Wait for ``seconds``; raise Cancelled as soon as the request is withdrawn."""
        if self._used.wait(seconds):
            raise Cancelled

    @contextlib.contextmanager
    def ending(self, end: Callable[[], object]) -> Iterator[None]:
        """While inside, ``withdraw`` calls ``end``, which ends at once what is waited for here."""
        with self._lock:
            self.check()
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None


def shut(sock: _socket.socket) -> None:
    """End a connection for both sides, though a forked child may still hold a copy of it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
