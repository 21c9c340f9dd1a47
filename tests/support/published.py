"""Published models without an origin: files put into a real store, and the parts around it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.cache.publish import Verified
from craftcache.digests import hash_stamped
from craftcache.sources import UrlSource, parse
from craftcached.database import Database
from craftcached.eviction.evictor import Evictor
from craftcached.eviction.holds import Holds
from craftcached.eviction.last_use import LastUse
from craftcached.eviction.meter import RoomMeter
from craftcached.eviction.parts import EvictionParts
from craftcached.eviction.pins import Pins
from craftcached.eviction.survey import Surveyor
from craftcached.fetch.disk_space import DiskSpace
from craftcached.residency.residency import Residency
from craftcached.store.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from craftcache.cache.manifest import Manifest

__all__ = ["Clock", "Keeping", "keeping", "key", "source"]


DAY = 86400.0


class Clock:
    """Seconds since the epoch, which pass when a test says so."""

    def __init__(self) -> None:
        self.now = 2_000_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True)
class Keeping:
    """The parts of a daemon that keep models or let them go."""

    store: Store
    records: Database
    residency: Residency
    pins: Pins
    holds: Holds
    uses: LastUse
    surveyor: Surveyor
    evictor: Evictor
    space: DiskSpace
    clock: Clock

    async def publish(self, name: str, **files: bytes) -> Manifest:
        """Publish the model ``name``, used a second after all that were published before."""
        verified: dict[str, tuple[Verified, str]] = {}
        for filename, content in files.items():
            path = self.store.cache.staging / f"{name}-{filename}"
            path.write_bytes(content)
            verified[filename] = Verified(hash_stamped(path), None, 0, 0), "nowhere"
        manifest = await self.store.publisher.publish_url(source(name), verified)
        for file, _ in verified.values():
            await self.store.discard(file)
        self.clock.now += 1
        self.uses.note(key(name))
        return manifest

    async def names(self) -> set[str]:
        """The published models."""
        return {m.source.rpartition("/")[2] for m in await self.store.manifests()}

    def path(self, manifest: Manifest) -> Path:
        """The blob of a model's first file."""
        return self.store.cache.path(manifest.files[0])


def source(name: str) -> UrlSource:
    parsed = parse(f"https://example.org/{name}")
    assert isinstance(parsed, UrlSource)
    return parsed


def key(name: str) -> str:
    return manifest_key(source(name))


@contextlib.asynccontextmanager
async def keeping(
    base: Path,
    *,
    max_bytes: int = 0,
    free: Callable[[], int] | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Keeping]:
    """The parts, with their directories under ``base``."""
    clock = clock or Clock()
    async with contextlib.AsyncExitStack() as stack:
        cache = CacheDir(base / "cache", frozenset({os.geteuid()}))
        store = await stack.enter_async_context(Store(cache))
        records = await stack.enter_async_context(Database(base / "state"))
        residency = await stack.enter_async_context(Residency())
        pins = Pins(store=store, records=records, residency=residency, clock=clock)
        await stack.enter_async_context(pins)
        uses = await stack.enter_async_context(LastUse(records, clock))
        holds = await stack.enter_async_context(Holds(records, DAY, clock))
        surveyor = Surveyor(store=store, pins=pins, holds=holds, uses=uses, clock=clock)
        space = DiskSpace(free or (lambda: 1 << 40), None, cache.root)
        space.policy = evictor = Evictor(
            store=store,
            surveyor=surveyor,
            meter=RoomMeter(cache, space),
            remove=store.remove,
            uses=uses,
            holds=holds,
            max_bytes=max_bytes,
            clock=clock,
        )
        store.kept_keys = EvictionParts(pins, holds, uses, surveyor, evictor).keys
        yield Keeping(store, records, residency, pins, holds, uses, surveyor, evictor, space, clock)
