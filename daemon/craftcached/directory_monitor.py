"""Monitoring of the daemon's own directories and sockets, which others may remove while it runs.

An administrator frees disk space with ``rm -rf``, a cleaner empties /run, a volume is unmounted.
Removed places are made anew within seconds and without a restart; those that cannot be are named in
the daemon's status and by ``craftcache doctor``.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from craftcache.errors import CraftcacheError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ["DirectoryMonitor", "MonitoredDirectory"]

log = logging.getLogger("craftcached")

PERIOD_SECONDS = 2.0
"""Time between two looks, each of which takes a few stats."""


GRACE_SECONDS = 1.0
"""Time between the first look that misses a place and its making: by then the removal of a tree is
over, and does not meet directories that are made under it."""


@dataclass(frozen=True, slots=True)
class MonitoredDirectory:
    """A directory or socket that others may remove.

    Attributes:
        shown: Name as shown to people.
        is_gone: Returns whether it was removed, or cannot be used; takes a few stats.
        heal: Makes it anew, or checks that it will be when it is needed; raises the reason if it
            cannot be.
        grace: Seconds between the look that misses it and its making.
    """

    shown: str
    is_gone: Callable[[], bool]
    heal: Callable[[], Awaitable[None]]
    grace: float = GRACE_SECONDS


class DirectoryMonitor:
    """Looks after places; an async context manager: it works until it is left.

    Args:
        places: The places to look after from the start.
        period: Seconds between two looks.
        clock: Returns monotonic time in seconds.
    """

    def __init__(
        self,
        places: Iterable[MonitoredDirectory],
        *,
        period: float = PERIOD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = list(places)
        self._period = period
        self._clock = clock
        self._missed: dict[str, float] = {}
        self._problems: dict[str, str] = {}
        # Held across one look at all places, so that none is made anew twice at once. No other lock
        # is taken inside.
        self._looking = asyncio.Lock()
        self._task: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    def look_after(self, place: MonitoredDirectory) -> None:
        """Look after one more place."""
        self._places.append(place)

    async def problems(self) -> tuple[str, ...]:
        """Look now; returns which places cannot be made anew, and why."""
        async with self._looking:
            for place in tuple(self._places):
                await self._look_at(place)
            return tuple(self._problems.values())

    async def _look_at(self, place: MonitoredDirectory) -> None:
        what = place.shown
        try:
            if await asyncio.to_thread(place.is_gone):
                missed = self._missed.setdefault(what, self._clock())
                if self._clock() - missed < place.grace:
                    return
                await place.heal()
            self._missed.pop(what, None)
        except (OSError, sqlite3.Error, CraftcacheError) as error:
            problem = (
                f"{what} cannot be used: {error}. Mend that, or restart the daemon with another "
                "one; nothing else is needed"
            )
            if self._problems.get(what) != problem:
                log.error("%s", problem)  # noqa: TRY400  # it says all there is to say
            self._problems[what] = problem
        else:
            if self._problems.pop(what, None) is not None:
                log.warning("%s can be used again", what)

    async def _run(self) -> None:
        while True:
            try:
                await self.problems()
            except Exception:
                log.exception("the daemon's directories are not looked after")
            await asyncio.sleep(self._period)
