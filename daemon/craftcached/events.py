"""What happens on this node, for whoever listens while it happens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Events"]

MAX_BEHIND = 1000
"""Events that a listener may be behind; one that is slower loses the oldest."""


class Events:
    """Tells every listener of every event; who does not listen misses it."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[dict[str, Any] | None]] = set()

    def tell(self, event: str, **fields: Any) -> None:  # noqa: ANN401  # whatever JSON can say
        """Tell of something that has just happened."""
        self._put({"event": event, "at": time.time()} | fields)

    def end(self) -> None:
        """Nothing more will happen: let everybody who listens go."""
        self._put(None)

    @contextlib.contextmanager
    def listening(self) -> Iterator[asyncio.Queue[dict[str, Any] | None]]:
        """All that happens from now on, and None when nothing more will."""
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
