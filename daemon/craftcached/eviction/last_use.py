"""The time of each model's last use: noted in memory on every hit, saved now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcached.database import Database

__all__ = ["LastUse"]


class LastUse:
    """The last use of each model, by its manifest's key; an async context manager.

    A crash loses the uses noted since the last save, and so only changes the order of eviction.

    Args:
        records: The database that keeps the times.
        clock: Returns the time in seconds since the epoch.
    """

    def __init__(self, records: Database, clock: Callable[[], float] = time.time) -> None:
        self._records = records
        self._clock = clock
        self._last: dict[str, float] = {}
        self._unsaved: set[str] = set()

    async def __aenter__(self) -> Self:
        self._last = await self._records.uses()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.save()

    def note(self, key: str) -> None:
        """Note that a model is used now."""
        self._last[key] = self._clock()
        self._unsaved.add(key)

    def last(self, key: str) -> float:
        """Time of a model's last use, in seconds since the epoch; 0 if unknown."""
        return self._last.get(key, 0.0)

    async def forget(self, key: str) -> None:
        """Delete the time of a removed model."""
        self._last.pop(key, None)
        self._unsaved.discard(key)
        await self._records.forget_use(key)

    async def save(self) -> None:
        """Save the uses noted since the last save."""
        if self._unsaved:
            unsaved = {key: self._last[key] for key in self._unsaved}
            self._unsaved.clear()
            await self._records.save_uses(unsaved)
