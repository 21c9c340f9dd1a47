"""Gates between a test and the hub: "it has come this far" and "it may go on".

All of them work across threads and event loops, so that an asynchronous test on the hub's own
loop and a synchronous one in another thread use the same object. Nothing here sleeps.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

__all__ = ["Signal", "Gate", "Valve"]

PATIENCE_S = 30.0
"""Seconds after which a wait fails the test instead of hanging it."""


class Signal:
    """Something that happens once and stays so."""

    def __init__(self) -> None:
        self._future: Future[None] = Future()
        self._lock = threading.Lock()

    @property
    def is_set(self) -> bool:
        return self._future.done()

    def set(self) -> None:
        with self._lock:
            if not self._future.done():
                self._future.set_result(None)

    def wait_blocking(self, timeout_s: float = PATIENCE_S) -> None:
        """For a synchronous test; raises TimeoutError."""
        self._future.result(timeout_s)

    async def wait(self, timeout_s: float | None = PATIENCE_S) -> None:
        """For a coroutine on any loop; raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(asyncio.wrap_future(self._future))


class Gate:
    """A place where the hub stops until the test lets it go on.

    Attributes:
        reached: Set when the first answer has come to the gate.
    """

    def __init__(self) -> None:
        self.reached = Signal()
        self._opened = Signal()

    def open(self) -> None:
        """Let everybody through, now and later."""
        self._opened.set()

    async def passed(self) -> None:
        """The hub's side: say that it is here, then wait, as long as it takes."""
        self.reached.set()
        await self._opened.wait(timeout_s=None)


class Valve:
    """A budget of bytes that the hub may send; the test fills it up as slowly as it likes."""

    def __init__(self, allowed: int = 0) -> None:
        self._lock = threading.Lock()
        self._allowed: int | None = allowed
        self._changed = Signal()

    def allow(self, count: int, most: int | None = None) -> None:
        """Let ``count`` more bytes through, but no more than ``most`` with those not taken yet."""
        with self._lock:
            if self._allowed is not None:
                self._allowed += count
                if most is not None:
                    self._allowed = min(self._allowed, most)
            self._wake()

    def open(self) -> None:
        """Let all bytes through from now on."""
        with self._lock:
            self._allowed = None
            self._wake()

    async def take(self, wanted: int) -> int:
        """The hub's side: wait until some bytes are allowed, and take at most ``wanted``."""
        while True:
            with self._lock:
                if self._allowed is None:
                    return wanted
                if self._allowed > 0:
                    taken = min(wanted, self._allowed)
                    self._allowed -= taken
                    return taken
                changed = self._changed
            await changed.wait(timeout_s=None)

    def _wake(self) -> None:
        changed, self._changed = self._changed, Signal()
        changed.set()
