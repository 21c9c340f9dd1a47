"""Held models: a user's word that what was warmed stays until a job has started.

Any user may hold what it warms, for at most as long as the setting ``max_hold`` says. A hold
belongs to a source and a user; it protects the model that is published under that name, and its
dependencies, from eviction. It does not keep an administrator from removing the model.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Self

from craftcache.cache.manifest import manifest_key
from craftcache.errors import PolicyDenied
from craftcached.database import Hold

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.sources import RemoteSource
    from craftcached.database import Database

__all__ = ["Holds"]

log = logging.getLogger("craftcached")


class Holds:
    """All holds; an async context manager that reads them.

    The mutable state: the holds by key and uid, changed on the event loop in steps without an
    await after the database has them.

    Args:
        records: The database that keeps the holds.
        max_seconds: Longest time for which a model may be held.
        clock: Returns the time in seconds since the epoch.

    Attributes:
        max_seconds: Longest time for which a model may be held; may be changed at any time.
    """

    def __init__(
        self, records: Database, max_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.max_seconds = max_seconds
        self._records = records
        self._clock = clock
        self._holds: dict[tuple[str, int], Hold] = {}

    async def __aenter__(self) -> Self:
        self._holds = {(hold.key, hold.uid): hold for hold in await self._records.holds()}
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def check(self, source: RemoteSource, seconds: float) -> None:
        """Raise PolicyDenied if nothing may be held for so many seconds."""
        if seconds > self.max_seconds:
            raise PolicyDenied(
                f"it may be held for at most {self.max_seconds:g} s, the setting max_hold, not for "
                f"{seconds:g} s",
                source=source.shown,
                hint="Hold it for less, or ask the administrator to raise max_hold",
            )

    async def hold(self, source: RemoteSource, uid: int, seconds: float) -> Hold:
        """Hold a model from now on; a user's earlier hold that lasts longer stays.

        Raises:
            PolicyDenied: So long is more than the settings allow.
        """
        self.check(source, seconds)
        key = manifest_key(source)
        hold = Hold(key, source.shown, uid, self._clock() + seconds)
        earlier = self._holds.get((key, uid))
        if earlier is not None and earlier.expires_at >= hold.expires_at:
            return earlier
        await self._records.save_hold(hold)
        self._holds[key, uid] = hold
        log.info("%s is held for uid %d, for %g s", hold.source, uid, seconds)
        return hold

    def until(self, key: str) -> float | None:
        """When the last hold of a model ends, in seconds since the epoch; None where it has none.

        Args:
            key: Key of the model's manifest.
        """
        now = self._clock()
        ends = (hold.expires_at for hold in self._holds.values() if hold.key == key)
        return max((end for end in ends if end > now), default=None)

    def all(self) -> list[Hold]:
        """All holds that are in force."""
        now = self._clock()
        return [hold for hold in self._holds.values() if hold.expires_at > now]

    async def forget(self, key: str) -> None:
        """Delete the holds of a removed model."""
        for hold in [hold for hold in self._holds.values() if hold.key == key]:
            await self._delete(hold)

    async def drop_expired(self) -> None:
        """Delete the holds that have ended."""
        now = self._clock()
        for hold in [hold for hold in self._holds.values() if hold.expires_at <= now]:
            await self._delete(hold)

    async def _delete(self, hold: Hold) -> None:
        await self._records.remove_hold(hold)
        if self._holds.get((hold.key, hold.uid)) == hold:
            del self._holds[hold.key, hold.uid]
