"""One running task for any number of requests for the same thing."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator

__all__ = ["SingleFlight", "Flight"]

T = TypeVar("T")
P = TypeVar("P")


class Flight(Generic[T, P]):
    """A running task, the number of requests that hold it, and the progress reported to them."""

    def __init__(self) -> None:
        self.holders = 0
        self.is_cancelled = False
        self.task: asyncio.Task[T]
        self.last: P | None = None
        self._listeners: list[Callable[[P], None]] = []

    def report(self, progress: P) -> None:
        """Report progress to all requests that wait."""
        self.last = progress
        for listener in tuple(self._listeners):
            listener(progress)

    @contextlib.contextmanager
    def listening(self, listener: Callable[[P], None]) -> Iterator[None]:
        """A context in which ``listener`` is called, at once with the last progress."""
        if self.last is not None:
            listener(self.last)
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)


class SingleFlight(Generic[T, P]):
    """One task a key for all requests with that key; the running tasks, by key.

    A task belongs to no request: the one that started it may be cancelled and the others still
    get the result. When the last of them leaves before the end, the task is cancelled; when the
    last of them leaves after it, the result is released. All state changes happen between awaits,
    so no lock is needed.

    Args:
        release: Called once with each result, when no request holds it any more; None does
            nothing.
    """

    def __init__(
        self, release: Callable[[T], Coroutine[object, object, None]] | None = None
    ) -> None:
        self._release = release
        self._releasing: set[asyncio.Task[None]] = set()
        self._running: dict[Hashable, Flight[T, P]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def latest(self) -> list[P]:
        """The last progress of each task that has reported any."""
        return [flight.last for flight in self._running.values() if flight.last is not None]

    @contextlib.asynccontextmanager
    async def join(
        self,
        key: Hashable,
        work: Callable[[Callable[[P], None]], Coroutine[object, object, T]],
        listener: Callable[[P], None],
    ) -> AsyncIterator[T]:
        """Wait for the task under ``key``, starting it if there is none, and hold its result.

        Args:
            key: Key of the work; equal keys share one task.
            work: Called with the function that reports progress to all who wait.
            listener: Called with each progress; must not block.
        """
        while (flight := self._running.get(key)) is not None and flight.is_cancelled:
            await asyncio.wait([flight.task])
        if flight is None:
            flight = Flight()
            flight.task = asyncio.create_task(work(flight.report))
            self._running[key] = flight
        flight.holders += 1
        try:
            with flight.listening(listener):
                result = await asyncio.shield(flight.task)
            yield result
        finally:
            flight.holders -= 1
            if flight.holders == 0:
                await self._land(key, flight)

    async def _land(self, key: Hashable, flight: Flight[T, P]) -> None:
        if flight.task.done():
            self._forget(key, flight)
            if self._releasing:
                await asyncio.wait(self._releasing)
            return
        # A request that comes from here on waits for the end, then starts anew. The flight is
        # forgotten by its task's end, which comes even if this wait is itself cancelled.
        flight.is_cancelled = True
        flight.task.add_done_callback(lambda _: self._forget(key, flight))
        flight.task.cancel()
        await asyncio.wait([flight.task])

    def _forget(self, key: Hashable, flight: Flight[T, P]) -> None:
        del self._running[key]
        if self._release and not flight.task.cancelled() and flight.task.exception() is None:
            # A task of its own, so that it is done whichever request is cancelled meanwhile.
            releasing = asyncio.create_task(self._release(flight.task.result()))
            self._releasing.add(releasing)
            releasing.add_done_callback(self._releasing.discard)
