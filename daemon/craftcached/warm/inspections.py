"""Inspections of verified files: each checkpoint once, however many requests wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from craftcache.checkpoint.filenames import is_checkpoint, is_pickled
from craftcache.errors import CraftcacheError, NotACheckpoint, UnsafeCheckpoint
from craftcached.singleflight import SingleFlight

from .progress import SourceProgress

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.cache.manifest import FileRecord
    from craftcache.cache.publish import Verified
    from craftcache.sources import RemoteSource
    from craftcache.wire import Progress
    from craftcached.inspect import Inspector
    from craftcached.store.store import Store

__all__ = ["CheckpointInspections"]


class CheckpointInspections:
    """Has checkpoints inspected, each once for all who want it; one instance a daemon.

    Its mutable state is the checkpoints that are being inspected, by sha256; changed on the event
    loop between awaits, so that it needs no lock.

    Args:
        store: The store, which keeps the indexes.
        inspector: Says whether a checkpoint is safe, and makes its index.
    """

    def __init__(self, store: Store, inspector: Inspector) -> None:
        self._store = store
        self._index_files = store.index_files
        self._inspector = inspector
        self._flights: SingleFlight[None, Progress] = SingleFlight()

    async def inspect(
        self, progress: SourceProgress, filename: str, file: Verified, *, is_asked_by_name: bool
    ) -> bool:
        """Refuse a checkpoint that is unsafe to load; write the index of one that is safe.

        A checkpoint that several requests wait for is inspected once. A file that was not named
        may be no checkpoint, though its name says so: then it is kept for its own readers.

        Args:
            progress: Told of the work.
            filename: Name of the file in its source.
            file: The file.
            is_asked_by_name: Whether it was asked for by its own name; one that was selected by a
                pattern need not be a checkpoint.

        Returns:
            Whether it is a checkpoint, and has an index now.

        Raises:
            UnsafeCheckpoint, NotACheckpoint: The file must not be served.
            IntegrityError: It is not the one that was verified any more.
        """
        sha256, size = file.digests.sha256, file.digests.size

        async def work(tell: Callable[[Progress], None]) -> None:
            SourceProgress(progress.source, tell).tell(filename, size, size, "inspecting")
            index = await self._inspector.inspect(file.path, source=progress.source.shown)
            # Others may have put another file in its place meanwhile: then it is of that.
            await self._store.check_untouched(file)
            await self._index_files.write(sha256, index)

        if not (is_checkpoint if is_asked_by_name else is_pickled)(filename):
            return False
        try:
            if not await self._index_files.has(sha256, size):
                async with self._flights.join(sha256, work, progress.relay(filename)):
                    pass
        except (NotACheckpoint, UnsafeCheckpoint) as error:
            if isinstance(error, NotACheckpoint) and not is_asked_by_name:
                return False
            raise error.about(progress.source.shown).in_file(filename) from error
        except CraftcacheError as error:  # shared with other requests, so each raises a copy
            raise error.about(progress.source.shown) from error
        return True

    async def inspect_published(
        self, record: FileRecord, progress: SourceProgress, *, is_asked_by_name: bool = True
    ) -> None:
        """Inspect a published file if nobody did, and record its index in the manifests.

        Args:
            record: Record of the file.
            progress: Told of the work.
            is_asked_by_name: As for inspect.

        Raises:
            UnsafeCheckpoint, NotACheckpoint: The file must not be served.
        """
        verified = self._store.local.as_verified(record)
        if not await self.inspect(
            progress, record.filename, verified, is_asked_by_name=is_asked_by_name
        ):
            return
        if record.index_sha256 not in self._store.indexes:
            await self._index_files.record(record.sha256)

    async def inspect_unpublished(
        self, source: RemoteSource, filename: str, verified: Verified
    ) -> None:
        """Inspect a verified file of a source that is to be published.

        Raises:
            UnsafeCheckpoint: Loading it would run code.
        """
        progress = SourceProgress(source, lambda _: None)
        await self.inspect(progress, filename, verified, is_asked_by_name=False)
