"""The daemon's event stream: each event goes to those who listen at that moment."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Events"]

MAX_BEHIND = 1000
"""Events queued for one listener at most; a slower listener loses the oldest."""


class Events:
    """Passes each event to all listeners of that moment; events are not kept for later ones.

    All state changes in steps without an await, on the event loop, so there is no lock.
    """

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[dict[str, Any] | None]] = set()

    def tell(self, event: str, **fields: Any) -> None:  # noqa: ANN401  # whatever JSON can say
        """Send an event to all listeners; ``at`` is set to the time in seconds since the epoch."""
        self._put({"event": event, "at": time.time()} | fields)

    def end(self) -> None:
        """End the stream of every listener; for the daemon's shutdown."""
        self._put(None)

    @contextlib.contextmanager
    def listening(self) -> Iterator[asyncio.Queue[dict[str, Any] | None]]:
        """A queue of all events from now on; None in it is the end of the stream."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(MAX_BEHIND)
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)

    def _put(self, event: dict[str, Any] | None) -> None:
        for listener in self._listeners:
            if listener.full():
                listener.get_nowait()
            listener.put_nowait(event)
