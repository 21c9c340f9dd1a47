"""The events that are streamed to a client during a warm: each step once, however often reported.

Downloads report many times a second, and a client may read slowly or not at all. So what waits to
be sent is the newest progress of each state of each file, of which there is never more than
MAX_WAITING, and the outcomes, of which each source has one.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from craftcache.wire import Progress

__all__ = ["NdjsonStream"]

STEP_SECONDS = 0.1
"""Time between two batches: more would be more than people can see."""

MAX_WAITING = 1024
"""Steps that may wait to be sent; of more than that the oldest are left out."""


class NdjsonStream:
    """Collects events as they happen and gives them out in batches, oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str | None, str], Progress] = {}
        self._outcomes: list[dict[str, Any]] = []
        self._has_news = asyncio.Event()
        self._is_over = asyncio.Event()

    def report(self, progress: Progress) -> None:
        """Add a step of progress, in place of an earlier one of the same state; never blocks."""
        key = (progress.source, progress.file, progress.state)
        self._waiting.pop(key, None)  # what happened last stands last
        self._waiting[key] = progress
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._has_news.set()

    def conclude(self, outcome: dict[str, Any]) -> None:
        """Add the result or the error of a source; these are never left out."""
        self._outcomes.append(outcome)
        self._has_news.set()

    def end(self) -> None:
        """End ``batches`` after the events that were added so far."""
        self._is_over.set()
        self._has_news.set()

    async def batches(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the events since the last batch, until ``end`` is called."""
        while not self._is_over.is_set() or self._has_news.is_set():
            await self._has_news.wait()
            self._has_news.clear()
            progress = [{"event": "progress"} | asdict(step) for step in self._waiting.values()]
            batch = progress + self._outcomes
            self._waiting.clear()
            self._outcomes = []
            if batch:
                yield batch
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STEP_SECONDS):
                    await self._is_over.wait()
