"""A store with what examines it, and somebody who mends as he is told."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.cache.directory import CacheDir
from craftcache.errors import Unavailable
from craftcached.database import Database
from craftcached.events import Events
from craftcached.scrub.background import Scrub
from craftcached.scrub.examiner import Examiner, PublishedModel
from craftcached.scrub.verifications import Verifications
from craftcached.store.quarantine import Quarantine
from craftcached.store.store import Store
from craftcached.store.verity import Verity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from craftcache.cache.manifest import Manifest
    from craftcache.daemon.administration import Verdict
    from craftcache.sources import RemoteSource

__all__ = ["Bench", "bench"]


class NoMender:
    """The Mender of a node whose origins are all away."""

    async def mend(self, key: str, manifest: Manifest, filename: str) -> None:
        raise Unavailable("away", source=manifest.source)

    async def publish_anew(
        self,
        source: RemoteSource,
        filenames: tuple[str, ...],
        *,
        as_need: bool = False,
        superseded: bool = False,
    ) -> None:
        raise Unavailable("away", source=source.shown)


@dataclass
class Bench:
    """The parts, with a clock that stands.

    Attributes:
        now: The time, in seconds since the epoch.
    """

    store: Store
    records: Database
    examiner: Examiner
    verifications: Verifications
    quarantine: Quarantine
    now: float = 2e9

    def clock(self) -> float:
        return self.now

    def scrub(self, days: float = 7.0, is_busy: Callable[[], bool] = lambda: False) -> Scrub:
        """A scrub that makes a step when it is told to, as after a restart."""
        return Scrub(
            store=self.store,
            records=self.records,
            examiner=self.examiner,
            quarantine=self.quarantine,
            days=days,
            is_busy=is_busy,
            clock=self.clock,
        )

    async def verify(self, models: list[tuple[str, Manifest]]) -> list[Verdict]:
        """What a verification of these models finds."""
        number = self.verifications.start([PublishedModel(*model) for model in models], ["some"])
        _, verdicts = await self.verifications.wait(number)
        return verdicts


@contextlib.asynccontextmanager
async def bench(base: Path, given: Store | None = None) -> AsyncIterator[Bench]:
    """All of it, on a store that is there or is made below ``base``."""
    async with contextlib.AsyncExitStack() as life:
        if given is None:
            given = await life.enter_async_context(Store(CacheDir(base / "cache")))
        store = given
        records = await life.enter_async_context(Database(base / "state"))
        verity = Verity(store.cache)
        life.callback(verity.close)
        await verity.open()
        made: list[Bench] = []
        examiner = Examiner(
            store=store,
            mender=NoMender(),
            records=records,
            events=Events(),
            verity=verity,
            clock=lambda: made[0].now,
        )
        verifications = Verifications(examiner, Events())
        life.push_async_callback(verifications.close)
        quarantine = Quarantine(store, days=30, max_bytes=0, clock=lambda: made[0].now)
        made.append(Bench(store, records, examiner, verifications, quarantine))
        yield made[0]
