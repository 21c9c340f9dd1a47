"""The running warms: one for all who ask for the same, told of from its beginning to its end."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError
from craftcached.singleflight import SingleFlight

from .pace import WarmPace
from .progress import SourceProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

    from craftcache.sources import RemoteSource
    from craftcache.wire import Coming, Progress
    from craftcached.events import Events

    from .description import FetchedSource
    from .warmed import Warmed

__all__ = ["RunningWarms"]


class RunningWarms:
    """Shares warms between requests, and knows how far each has come.

    The mutable state: the running warms by what is asked for, and the pace of each. Both change on
    the event loop between awaits.

    Args:
        events: Told of the beginning and the end of each warm.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._paces: set[WarmPace] = set()
        self._requests: SingleFlight[Warmed, Progress] = SingleFlight()

    def __len__(self) -> int:
        return len(self._requests)

    def progress(self) -> list[Progress]:
        """The last progress of each running warm."""
        return self._requests.latest()

    def coming(self) -> list[Coming]:
        """What each running warm brings, how fast and for how much longer; oldest first."""
        return [pace.coming() for pace in sorted(self._paces, key=lambda pace: pace.began)]

    async def share(
        self,
        key: Hashable,
        source: FetchedSource,
        work: Callable[[SourceProgress], Coroutine[object, object, Warmed]],
        report: Callable[[Progress], None],
    ) -> Warmed:
        """Do ``work`` once for all requests with the same ``key``; errors name ``source``."""

        async def run(tell: Callable[[Progress], None]) -> Warmed:
            pace = WarmPace(source.shown)
            self._paces.add(pace)
            try:
                progress = SourceProgress(source, tell).heard_by(pace.heard)
                return await self._tell(source, work(progress))
            finally:
                self._paces.discard(pace)

        try:
            async with self._requests.join(key, run, report) as warmed:
                return warmed
        except CraftcacheError as error:  # shared with other requests, so each raises a copy
            raise error.about(source.shown) from error

    async def _tell(self, source: FetchedSource, work: Coroutine[object, object, Warmed]) -> Warmed:
        """Do ``work``; tell of its beginning and its end, once for all requests that share it."""
        started = time.monotonic()
        self._events.tell("warm_started", source=source.shown)
        try:
            warmed = await work
        except CraftcacheError as error:
            self.tell_failed(source, error, time.monotonic() - started)
            raise
        except asyncio.CancelledError:
            seconds = time.monotonic() - started
            self._events.tell("warm_cancelled", source=source.shown, seconds=seconds)
            raise
        self._events.tell(
            "warmed",
            source=source.shown,
            revision=warmed.manifest.revision,
            bytes_fetched=warmed.bytes_fetched,
            bytes_reused=warmed.bytes_reused,
            seconds=time.monotonic() - started,
        )
        return warmed

    def tell_failed(self, source: RemoteSource, error: CraftcacheError, seconds: float) -> None:
        """Tell of a warm that failed, ``seconds`` after it began."""
        self._events.tell(
            "warm_failed",
            source=source.shown,
            code=error.code,
            message=error.message,
            hint=error.hint,
            retryable=error.retryable,
            seconds=seconds,
        )
