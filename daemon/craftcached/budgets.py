"""Budgets: what one user may have of the daemon, so that there is some left for the next.

Off by default, each by its setting. Root and the daemon's own user have none. A hit costs nothing:
only what takes work counts.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, defaultdict, deque
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from craftcache.amounts import counted, size_text
from craftcache.durations import DAY_SECONDS
from craftcache.errors import BudgetExceeded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from .database import Database

__all__ = ["BudgetLimits", "Budgets", "UserBudget"]

MINUTE_SECONDS = 60.0

BUSY_SECONDS = 5.0
"""Time after which a user whose requests are all running may ask again."""

QUEUE_SECONDS = 60.0
"""Time after which a user whose queued warms are too many may ask again."""


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """What each user may have; 0 is no limit.

    Attributes:
        requests: Requests that take work, at once.
        requests_per_minute: Such requests in any minute.
        fetched_bytes_per_day: Bytes fetched from origins on a day, UTC.
        queued: Warms in the queue.
    """

    requests: int = 0
    requests_per_minute: int = 0
    fetched_bytes_per_day: int = 0
    queued: int = 0


@dataclass(frozen=True, slots=True)
class UserBudget:
    """What one user has of the daemon at one moment.

    Attributes:
        uid: The user.
        requests: Requests that are worked on.
        requests_last_minute: Requests of the last minute that took work.
        fetched_bytes_today: Bytes fetched for it since midnight, UTC; those too that are promised
            to running fetches.
    """

    uid: int
    requests: int
    requests_last_minute: int
    fetched_bytes_today: int


class Budgets:
    """The budgets of all users; an async context manager that reads what was used before.

    The mutable state, changed on the event loop between awaits: running requests, the times of
    those of the last minute, and the bytes of the day, each by uid.

    Args:
        records: The database that keeps the bytes of the day.
        limits: What each user may have.
        clock: Returns the time in seconds since the epoch.
        unlimited: Users without budgets; None stands for root and the daemon's own.

    Attributes:
        limits: What each user may have; may be changed at any time.
    """

    def __init__(
        self,
        records: Database,
        limits: BudgetLimits,
        *,
        clock: Callable[[], float] = time.time,
        unlimited: frozenset[int] | None = None,
    ) -> None:
        self.limits = limits
        self._records = records
        self._clock = clock
        self._unlimited = frozenset({0, os.geteuid()}) if unlimited is None else unlimited
        self._running: Counter[int] = Counter()
        self._asked: defaultdict[int, deque[float]] = defaultdict(deque)
        self._day = 0
        self._fetched: Counter[int] = Counter()
        self._promised: Counter[int] = Counter()

    async def __aenter__(self) -> Self:
        self._day = self._today()
        for uid, (day, size) in (await self._records.fetched()).items():
            if day == self._day:
                self._fetched[uid] = size
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    @contextmanager
    def request(self, uid: int) -> Iterator[None]:
        """A context in which a request of that user is worked on.

        Raises:
            BudgetExceeded: It has too many, at once or in the last minute.
        """
        asked, now = self._last_minute(uid), self._clock()
        if uid not in self._unlimited:
            limits = self.limits
            if 0 < limits.requests <= self._running[uid]:
                raise _exceeded(
                    f"uid {uid} has {counted(self._running[uid], 'request')} worked on, as many "
                    "as a user may have at once",
                    BUSY_SECONDS,
                    "max_requests_per_uid",
                )
            if 0 < limits.requests_per_minute <= len(asked):
                raise _exceeded(
                    f"uid {uid} has made {counted(len(asked), 'request')} in the last minute, "
                    "as many as a user may",
                    max(1.0, asked[-limits.requests_per_minute] + MINUTE_SECONDS - now),
                    "max_requests_per_minute_per_uid",
                )
        asked.append(now)
        self._running[uid] += 1
        try:
            yield
        finally:
            self._running[uid] -= 1

    @asynccontextmanager
    async def fetching(
        self, uid: int | None, size: int, written: Callable[[], int], *, source: str
    ) -> AsyncIterator[None]:
        """A context in which bytes are fetched for a user; what came is counted at its end.

        Args:
            uid: The user; None where the daemon fetches by itself.
            size: Bytes that are to come, as far as that is known.
            written: Returns the bytes that came.
            source: Named in errors.

        Raises:
            BudgetExceeded: The user has no more bytes on this day; nothing was fetched.
        """
        if uid is None:
            yield
            return
        self._check_day(uid, size, source)
        self._promised[uid] += size
        try:
            yield
        finally:
            self._promised[uid] -= size
            if came := written():
                self._turn_day()
                self._fetched[uid] += came
                saving = self._records.save_fetched(uid, self._day, self._fetched[uid])
                await asyncio.shield(saving)

    def check_queued(self, uid: int, queued: int) -> None:
        """Raise BudgetExceeded if a user may not have so many warms in the queue."""
        limit = self.limits.queued
        if 0 < limit < queued and uid not in self._unlimited:
            raise _exceeded(
                f"uid {uid} would have {counted(queued, 'warm')} in the queue, "
                f"and may have {limit}",
                QUEUE_SECONDS,
                "max_queued_per_uid",
            )

    def report(self) -> list[UserBudget]:
        """What each user has that has anything, by uid."""
        self._turn_day()
        users = {*self._running, *self._asked, *self._fetched, *self._promised}
        found = [
            UserBudget(
                uid,
                self._running[uid],
                len(self._last_minute(uid)),
                self._fetched[uid] + self._promised[uid],
            )
            for uid in sorted(users)
        ]
        return [user for user in found if user != UserBudget(user.uid, 0, 0, 0)]

    def _check_day(self, uid: int, size: int, source: str) -> None:
        self._turn_day()
        limit = self.limits.fetched_bytes_per_day
        spent = self._fetched[uid] + self._promised[uid]
        if uid in self._unlimited or limit <= 0 or (spent < limit and spent + size <= limit):
            return
        raise _exceeded(
            f"{size_text(size)} more are too many for uid {uid}: {size_text(spent)} of the "
            f"{size_text(limit)} that a user may have fetched on a day are spent",
            (self._day + 1) * DAY_SECONDS - self._clock(),
            "max_daily_bytes_per_uid",
        ).about(source)

    def _last_minute(self, uid: int) -> deque[float]:
        """The times of a user's requests of the last minute; older ones are dropped."""
        asked, since = self._asked[uid], self._clock() - MINUTE_SECONDS
        while asked and asked[0] <= since:
            asked.popleft()
        return asked

    def _today(self) -> int:
        return int(self._clock() // DAY_SECONDS)

    def _turn_day(self) -> None:
        if self._today() != self._day:
            self._day = self._today()
            self._fetched.clear()


def _exceeded(message: str, retry_after: float, setting: str) -> BudgetExceeded:
    return BudgetExceeded(
        message,
        hint=f"Try again later; the administrator sets {setting}",
        retry_after=round(retry_after, 1),
    )
