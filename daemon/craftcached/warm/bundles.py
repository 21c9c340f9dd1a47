"""Importing a bundle: models that come with their lock, from whoever administers this node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
from typing import TYPE_CHECKING, Self

from craftcache.amounts import size_text
from craftcache.bundle import unpack, verified_files
from craftcache.cache.durable import make_directory
from craftcache.cache.publish import Verified
from craftcache.errors import IntegrityError
from craftcache.sources import HubSource, shown_url
from craftcached.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future
    from pathlib import Path

    from craftcache.bundle import LockedModel, Unpacked
    from craftcache.cache.manifest import Manifest
    from craftcache.sources import RemoteSource
    from craftcached.fetch.disk_space import DiskSpace
    from craftcached.store.store import Store

    from .inspections import CheckpointInspections
    from .origins import Origins

__all__ = ["BundleImporter"]

log = logging.getLogger("craftcached")

READ_AT_ONCE = 1024 * 1024
"""Bytes that the thread is handed at once; they come in pieces of some 64 KiB."""

AT_ONCE = 2
"""Bundles that are unpacked at once; a further one waits."""


class BundleImporter:
    """Publishes the models of bundles as their warm would have; one instance a daemon.

    It has no state but its threads. Every byte of a bundle is hashed, and every checkpoint
    inspected, before its first model is published. The room of what is being unpacked is claimed;
    once it is on the disk it counts as what it is.

    Args:
        store: Publishes the models.
        inspections: Has their checkpoints inspected.
        origins: Know the address that a source's files would have come from.
        check_allowed: Raises PolicyDenied for a source that this node may not have.
        space: The ledger of the room that files take which are not published yet.
    """

    def __init__(
        self,
        *,
        store: Store,
        inspections: CheckpointInspections,
        origins: Origins,
        check_allowed: Callable[[RemoteSource], None],
        space: DiskSpace,
    ) -> None:
        self._store = store
        self._inspections = inspections
        self._origins = origins
        self._check_allowed = check_allowed
        self._space = space
        # A directory of its own for each bundle: its name is the key of the bundle's claim.
        self._staging = store.cache.staging / "bundle"
        self._threads = Threads(AT_ONCE, "bundle")

    async def __aenter__(self) -> Self:
        """Remove what the daemon before has left of bundles."""
        await asyncio.to_thread(shutil.rmtree, self._staging, ignore_errors=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._threads.close()

    async def import_bundle(self, read: Callable[[int], Awaitable[bytes]]) -> list[Manifest]:
        """Import a bundle.

        Args:
            read: Reads at most so many of its bytes; none at its end.

        Returns:
            The manifests, in the order of the bundle's lock.

        Raises:
            IntegrityError: The bundle is damaged; nothing was imported.
            InvalidSource: Its lock file is malformed.
            PolicyDenied: The settings do not allow one of its sources; nothing was imported.
            UnsafeCheckpoint: Loading one of its files would run code; nothing was imported.
            StorageFull: There is no room for it.
        """
        await self._store.lock.heal()
        directory = self._staging / secrets.token_hex(16)
        try:
            return await self._import(_Body(read), directory)
        finally:
            removing = asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            await asyncio.shield(removing)

    async def _import(self, body: _Body, directory: Path) -> list[Manifest]:
        unpacked = await self._unpack(body, directory)
        try:
            for model in unpacked.lock.models:
                self._check_allowed(model.source)
            for model in unpacked.lock.models:
                await self._inspect(model, unpacked)
            published = {}
            for model in reversed(unpacked.lock.models):  # what is needed comes first
                published[model.source.shown] = await self._publish(model, unpacked)
        finally:
            await self._discard(unpacked)
        return [published[model.source.shown] for model in unpacked.lock.models]

    async def _unpack(self, body: _Body, directory: Path) -> Unpacked:
        space, key = self._space, directory.name

        async def claim(size: int) -> None:
            await space.reserve(key, size, source="a bundle")
            body.on_arrival = lambda arrived: space.written(key, arrived)

        def work() -> Unpacked:
            make_directory(directory)
            return unpack(body, directory, check_room=lambda size: body.wait_for(claim(size)))

        # A cancelled caller waits for its end, too: nothing is made after all was removed.
        unpacking = asyncio.ensure_future(self._threads.run(work))
        try:
            return await asyncio.shield(unpacking)
        except asyncio.CancelledError:
            body.end()
            with contextlib.suppress(IntegrityError):
                await self._discard(await unpacking)
            raise
        finally:
            body.on_arrival = None
            space.release(key)

    async def _inspect(self, model: LockedModel, unpacked: Unpacked) -> None:
        known = self._store.trusted(model.source)
        # As for a warm: what comes as a dependency is inspected when it is asked for by name.
        if model.lock.needed_only and (known is None or known.needed_only):
            return
        for filename, (verified, _) in verified_files(model, unpacked).items():
            await self._inspections.inspect_unpublished(model.source, filename, verified)

    async def _publish(self, model: LockedModel, unpacked: Unpacked) -> Manifest:
        files, lock = verified_files(model, unpacked), model.lock
        if isinstance(model.source, HubSource):
            manifest = await self._store.publisher.publish_hub(
                model.source,
                lock.revision,
                files,
                self._origins.of(model.source).shown(lock.revision),
                is_named=True,
                as_need=lock.needed_only,
            )
        else:
            shown = {
                name: (verified, shown_url(model.source.file_url(name)))
                for name, (verified, _) in files.items()
            }
            manifest = await self._store.publisher.publish_url(
                model.source, shown, as_need=lock.needed_only
            )
        size = size_text(manifest.size)
        log.info("imported %s at %s: %s", manifest.source, manifest.revision, size)
        return manifest

    async def _discard(self, unpacked: Unpacked) -> None:
        for file in unpacked.files.values():
            await self._store.discard(Verified(file, None, 0, file.digests.size))


class _Body:
    """Bytes that arrive on the event loop, as a blocking stream for the thread that unpacks them.

    Args:
        read: Reads at most so many bytes; none at their end.

    Attributes:
        on_arrival: Called on the event loop with the number of bytes that the thread is handed;
            None calls nobody.
    """

    def __init__(self, read: Callable[[int], Awaitable[bytes]]) -> None:
        self.on_arrival: Callable[[int], None] | None = None
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._waiting: Future[bytes] | None = None
        self._is_ended = False

    def read(self, size: int) -> bytes:
        """The next bytes, as soon as there are some; called in the thread."""
        self._waiting = asyncio.run_coroutine_threadsafe(self._next(size), self._loop)
        try:
            return self._waiting.result()
        except BaseException as error:
            if self._is_ended:
                raise IntegrityError("the bundle is withdrawn") from error
            raise

    def wait_for(self, making: Awaitable[object]) -> None:
        """Have the event loop do something that the thread waits for; called in the thread."""

        async def make() -> None:
            await making

        asyncio.run_coroutine_threadsafe(make(), self._loop).result()

    def end(self) -> None:
        """Let the thread read no more; called on the event loop."""
        self._is_ended = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def _next(self, size: int) -> bytes:
        """The next bytes, as many as are worth a change of threads."""
        if self._is_ended:
            raise IntegrityError("the bundle is withdrawn")
        wanted = min(size, READ_AT_ONCE)
        pieces: list[bytes] = []
        while wanted > 0 and (piece := await self._read(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        if self.on_arrival is not None:
            self.on_arrival(sum(map(len, pieces)))
        return b"".join(pieces)
