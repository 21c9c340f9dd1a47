"""The progress and heartbeats that a worker is sent while its request is worked on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from craftcache.wire import Progress, encode

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from craftcache.wire import Request

__all__ = ["Reporter"]

STEP_SECONDS = 0.1
"""Least time between two reports of the same state of the same file."""


class Reporter:
    """Sends progress to a worker, at least once a heartbeat and at most once a STEP_SECONDS.

    On entering its ``with`` block the worker is told at once that its request is queued; inside
    it the newest progress is sent again whenever a heartbeat is due. After the block nothing is
    sent: the worker may have made its next request by then.

    Args:
        send: Sends a packet, or drops it if it does not fit; never blocks.
        request: The worker's request.
        heartbeat_seconds: Time between two heartbeats.
    """

    def __init__(
        self, send: Callable[[bytes], object], request: Request[object], heartbeat_seconds: float
    ) -> None:
        self._send = send
        self._heartbeat_seconds = heartbeat_seconds
        about = request.about.shown if request.about else ""
        self._newest = Progress(about, file=None, done=0, total=None, state="queued")
        self._is_over = False
        self._told: dict[tuple[str, str | None], tuple[str, float]] = {}

    def __call__(self, progress: Progress) -> None:
        """Send progress, unless the same state of the file was sent less than STEP_SECONDS ago."""
        if self._is_over:
            return
        self._newest = progress
        now = self._loop.time()
        state, at = self._told.get((progress.source, progress.file), ("", 0.0))
        if state != progress.state or now - at >= STEP_SECONDS:
            self._told[progress.source, progress.file] = (progress.state, now)
            self._send(encode(progress))

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._beat()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over = True
        self._timer.cancel()

    def _beat(self) -> None:
        self._send(encode(self._newest))
        self._timer = self._loop.call_later(self._heartbeat_seconds, self._beat)
