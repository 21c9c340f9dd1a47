"""Pinned models: never evicted, never removed, and locked in memory if that is asked for.

A pin belongs to a source, not to a revision: it protects the model that is published under that
name, and its dependencies. It may end by itself at a given time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from craftcache.cache.manifest import manifest_key
from craftcache.errors import CraftcacheError, NotFound, PolicyDenied
from craftcached.database import Pin
from craftcached.events import Events

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.cache.manifest import Manifest
    from craftcache.sources import RemoteSource
    from craftcached.database import Database
    from craftcached.residency.page_cache import LockedFile
    from craftcached.residency.residency import Residency
    from craftcached.store.store import Store

__all__ = ["Pins"]

log = logging.getLogger("craftcached")


@dataclass(frozen=True, slots=True)
class _Lock:
    """The files of a model that are locked in memory, identified by path and inode."""

    blobs: frozenset[tuple[str, int]]
    files: tuple[LockedFile, ...]

    def release(self) -> None:
        for file in self.files:
            file.close()


class Pins:
    """All pins; an async context manager that reads them, and at the end releases memory locks.

    Memory locks follow the pins in ``apply_locks``, after a start as after a new revision.

    Args:
        store: The published models.
        records: The database that keeps the pins.
        residency: Locks files in memory.
        clock: Returns the time in seconds since the epoch.
        events: Told of pins that come and go.
    """

    def __init__(
        self,
        *,
        store: Store,
        records: Database,
        residency: Residency,
        clock: Callable[[], float] = time.time,
        events: Events | None = None,
    ) -> None:
        self._clock = clock
        self._events = events or Events()
        self._store = store
        self._records = records
        self._residency = residency
        self._pins: dict[str, Pin] = {}
        self._locks: dict[str, _Lock] = {}
        self._failures: dict[str, str] = {}
        # Held across each change of _pins, _locks and _failures with the database and the memory
        # locks that it implies; reads take no lock. Taken before the residency's thread and the
        # database; no other lock is taken inside.
        self._changing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._pins = {pin.key: pin for pin in await self._records.pins()}
        return self

    async def __aexit__(self, *_: object) -> None:
        for key in tuple(self._locks):
            await self._unlock(key)

    def find(self, key: str) -> Pin | None:
        """The pin of the model whose manifest has that key; None where it has ended."""
        pin = self._pins.get(key)
        return pin if pin is not None and self._is_in_force(pin) else None

    async def check_unpinned(self, source: RemoteSource) -> None:
        """Raise PolicyDenied if ``source`` is pinned, or needed by a model that is."""
        key = manifest_key(source)
        for pin in self._in_force():
            if pin.key == key:
                raise _pinned(source, "it is pinned", pin)
            manifest = await self._store.manifest_at(pin.key)
            if manifest is not None and key in manifest.needed_keys:
                raise _pinned(source, f"{pin.source} is pinned, and needs it", pin)

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the manifests of all pinned models."""
        return frozenset(pin.key for pin in self._in_force())

    async def pin(
        self, source: RemoteSource, *, lock: bool, expires_in: float | None = None
    ) -> Pin:
        """Pin a model; pinning it again changes whether it is locked, and when the pin ends.

        Args:
            source: The source to pin.
            lock: Whether its pages are locked in memory too. Returns when all of them are there.
            expires_in: Seconds after which the pin ends by itself; None for never.

        Raises:
            NotFound: It is not in the cache.
            PolicyDenied: Its size is more than may be locked; an earlier pin is unchanged.
        """
        key = manifest_key(source)
        async with self._changing:
            manifest = self._store.manifest(source)
            if manifest is None:
                raise NotFound(
                    "not in the cache", source=source.shown, hint=f"craftcache warm {source.shown}"
                )
            if lock:
                await self._lock(key, manifest)
            now = self._clock()
            expires_at = None if expires_in is None else now + expires_in
            pin = Pin(key, source.shown, lock, now, expires_at)
            await self._records.save_pin(pin)
            self._pins[key] = pin
            if not lock:
                await self._unlock(key)
        self._events.tell("pinned", source=source.shown, locked=lock)
        return pin

    async def unpin(self, source: RemoteSource) -> None:
        """Allow a model to be evicted and removed again.

        Raises:
            NotFound: It is not pinned.
        """
        key = manifest_key(source)
        async with self._changing:
            if self.find(key) is None:
                raise NotFound("not pinned", source=source.shown, hint="craftcache ls shows pins")
            await self._records.remove_pin(key)
            del self._pins[key]
            await self._unlock(key)
        self._events.tell("unpinned", source=source.shown)

    async def drop_expired(self) -> None:
        """Delete the pins that have ended, and release their memory locks."""
        async with self._changing:
            for pin in tuple(self._pins.values()):
                if not self._is_in_force(pin):
                    await self._records.remove_pin(pin.key)
                    del self._pins[pin.key]
                    await self._unlock(pin.key)
                    log.info("the pin of %s has ended", pin.source)

    def _in_force(self) -> list[Pin]:
        return [pin for pin in self._pins.values() if self._is_in_force(pin)]

    def _is_in_force(self, pin: Pin) -> bool:
        return pin.expires_at is None or self._clock() < pin.expires_at

    async def apply_locks(self) -> None:
        """Lock the current revision of models pinned with a lock; retry failures at later calls."""
        await self.drop_expired()
        async with self._changing:
            for key, pin in self._pins.items():
                manifest = await self._store.manifest_at(key)
                if pin.is_locked and manifest is not None:
                    await self._try_lock(pin, manifest)

    async def _try_lock(self, pin: Pin, manifest: Manifest) -> None:
        try:
            await self._lock(pin.key, manifest)
        except (CraftcacheError, OSError) as error:
            if self._failures.get(pin.key) != str(error):
                log.warning("%s is pinned and cannot be locked: %s", pin.source, error)
            self._failures[pin.key] = str(error)
        else:
            self._failures.pop(pin.key, None)

    async def _lock(self, key: str, manifest: Manifest) -> None:
        held = self._locks.get(key)
        blobs = frozenset((record.path, record.inode) for record in manifest.files)
        if held is not None and held.blobs == blobs:
            return
        paths = [self._store.cache.path(record) for record in manifest.files]
        files = await self._residency.lock(paths)
        await self._unlock(key)
        self._locks[key] = _Lock(blobs, tuple(files))

    async def _unlock(self, key: str) -> None:
        lock = self._locks.pop(key, None)
        if lock is not None:
            await asyncio.to_thread(lock.release)  # takes time for each page


def _pinned(source: RemoteSource, why: str, pin: Pin) -> PolicyDenied:
    return PolicyDenied(
        why, source=source.shown, hint=f"craftcache unpin {pin.source}, then try again"
    )
