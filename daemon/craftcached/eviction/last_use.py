"""When each model was last used: noted in memory on every hit, written down now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcached.database import Database

__all__ = ["LastUse"]


class LastUse:
    """The last use of each model, by its manifest's key; an async context manager.

    A crash loses what was noted since the last save, and with it only the order in which models
    would go.

    Args:
        records: Where they are kept.
        clock: Seconds since the epoch.
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
        """A model is used now."""
        self._last[key] = self._clock()
        self._unsaved.add(key)

    def last(self, key: str) -> float:
        """When a model was last used, in seconds since the epoch; 0 if that is not known."""
        return self._last.get(key, 0.0)

    async def forget(self, key: str) -> None:
        """A model is gone."""
        self._last.pop(key, None)
        self._unsaved.discard(key)
        await self._records.forget_use(key)

    async def save(self) -> None:
        """Write down what was noted since the last time."""
        if self._unsaved:
            unsaved = {key: self._last[key] for key in self._unsaved}
            self._unsaved.clear()
            await self._records.save_uses(unsaved)
