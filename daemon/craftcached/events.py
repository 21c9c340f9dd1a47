"""The daemon's events: numbered, kept for a while, streamed to whoever asks.

What happens is told once, here. The event stream, the log's line of each job, the metrics and the
status of models that are not warm all hear of it from here, so they never disagree.

Numbers grow by one with each event. The first one of a daemon is the time of its start in
microseconds, so that numbers also grow from one daemon to the next: a listener that has heard of a
number can ask the next daemon what came after it, and is told what it missed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["Event", "Events"]

Event: TypeAlias = dict[str, Any]
"""One event, as a JSON object: ``seq``, ``event``, ``at``, and what is said of its kind."""

KEPT = 4096
"""Events that are kept, for listeners that were away or are slow."""

BATCH = 256
"""Events that a listener is given at once."""


class Events:
    """Numbers and keeps events, and passes them on.

    All state changes in steps without an await, on the event loop, so there is no lock. Observers
    are called at once, and so must not block; listeners read what is kept, at their own speed.

    Args:
        kept: Events that are kept; of more than that the oldest are dropped.
        clock: Returns the time in seconds since the epoch.
    """

    def __init__(self, kept: int = KEPT, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._newest = int(clock() * 1e6)
        self._kept: deque[Event] = deque(maxlen=kept)
        self._observers: list[Callable[[Event], None]] = []
        self._listeners: set[asyncio.Event] = set()
        self._is_over = False

    @property
    def newest(self) -> int:
        """Number of the newest event; before the first one, the number that it follows."""
        return self._newest

    def observe(self, observer: Callable[[Event], None]) -> None:
        """Call ``observer`` with each event from now on, before any listener has it."""
        self._observers.append(observer)

    def tell(self, event: str, **fields: Any) -> None:  # noqa: ANN401  # whatever JSON can say
        """Add an event; ``at`` is set to the time in seconds since the epoch."""
        self._newest += 1
        told: Event = {"seq": self._newest, "event": event, "at": self._clock()} | fields
        self._kept.append(told)
        for observer in self._observers:
            observer(told)
        self._wake()

    def end(self) -> None:
        """End the stream of every listener; for the daemon's shutdown."""
        self._is_over = True
        self._wake()

    async def stream(self, since: int | None = None) -> AsyncIterator[list[Event]]:
        """Yield events in batches as they happen, until ``end`` is called.

        Where events are lost to the listener, because it was away or is slow, an event ``gap``
        stands in their place. It has the number of the last one lost, so that a listener that
        goes on from there is not told again.

        Args:
            since: Number after which to begin; 0 begins with the oldest that is kept, None with
                what happens from now on.
        """
        heard = self._newest if since is None else since
        has_news = asyncio.Event()
        self._listeners.add(has_news)
        try:
            while True:
                has_news.clear()
                while batch := self._after(heard):
                    heard = batch[-1]["seq"]
                    yield batch
                if self._is_over:
                    return
                await has_news.wait()
        finally:
            self._listeners.discard(has_news)

    def _after(self, heard: int) -> list[Event]:
        """Some events after that number, with a gap before them if there is one."""
        oldest = self._newest - len(self._kept) + 1
        if heard > self._newest:  # of a daemon whose clock was ahead
            return [self._gap(heard, self._newest)]
        if 0 < heard < oldest - 1:
            return [self._gap(heard, oldest - 1)]
        start = max(heard - oldest + 1, 0)
        return list(islice(self._kept, start, start + BATCH))

    def _gap(self, heard: int, lost: int) -> Event:
        return {"seq": lost, "event": "gap", "at": self._clock(), "since": heard}

    def _wake(self) -> None:
        for has_news in self._listeners:
            has_news.set()
