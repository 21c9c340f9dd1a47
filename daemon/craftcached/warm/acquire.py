"""A described file, whole and verified, from wherever it can be had most cheaply.

    published and current -> in the Hub's tree -> in another model -> at its origin

What is asked for twice at once is acquired once: files are known by their content where the origin
promises a digest, else by their address. A file that came from its origin stays in staging, and
huggingface_hub's lock of it stays held, until nobody needs it there any more: its last user
publishes it before that, or it leaves no trace.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from craftcache.cache.publish import Verified
from craftcache.checkpoint.filenames import is_checkpoint
from craftcache.digests import HashedFile
from craftcache.errors import CraftcacheError, NotACheckpoint, UnsafeCheckpoint
from craftcache.sources import HubSource
from craftcached.fetch import Priority
from craftcached.singleflight import SingleFlight

from .description import VerifiedFiles
from .hub_lock import PATIENCE_SECONDS, HubLock
from .progress import SourceProgress
from .stalls import StallDetector
from .tasks import all_results

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from craftcache.cache.manifest import FileRecord
    from craftcache.digests import Promise
    from craftcache.sources import RemoteSource
    from craftcache.wire import Progress
    from craftcached.fetch import Fetcher
    from craftcached.inspect import Inspector
    from craftcached.store.store import Store

    from .description import DescribedFile, Description, Wanted

__all__ = ["FileAcquirer"]


@dataclass(frozen=True, slots=True)
class _HeldFile:
    """A verified file, and the lock that keeps others from fetching it before it is published.

    The file is held open, and so is in use: the model that has it now is not evicted meanwhile.
    """

    file: Verified
    descriptor: int
    lock: HubLock | None = None

    @classmethod
    def hold(cls, file: Verified, lock: HubLock | None = None) -> _HeldFile:
        return cls(file, os.open(file.path, os.O_RDONLY | os.O_CLOEXEC), lock)

    def waiting_for(self, reception: StallDetector) -> contextlib.AbstractContextManager[None]:
        """While inside, it waits to be published with the other files of a request."""
        return self.lock.waiting_for(reception) if self.lock else contextlib.nullcontext()


class FileAcquirer:
    """Acquires files, each once for all who want it; one instance a daemon.

    The mutable state, all of it changed on the event loop between awaits, so that none needs a
    lock:

    - the files that are being acquired or are held, by DescribedFile.key;
    - the checkpoints that are being inspected, by sha256;
    - how many requests wait for each source at this moment;
    - the fetch engine's keys of the files that are being fetched, by source.

    Lock order: huggingface_hub's lock of a blob, then the engine's turn for its key, then, with the
    first still held, the store's thread that publishes. A request takes the locks of its several
    blobs in no order. That cannot deadlock: requests of this daemon for one blob share one lock,
    unmodified programs hold one at a time, and a worker that fetches for itself waits only seconds
    for each of its several; whoever holds one without progress is passed by.

    Args:
        store: Where a file may be already, and what keeps the indexes.
        fetcher: Brings bytes into staging, verified.
        inspector: Says whether a checkpoint is safe, and what it holds.
        lock_patience: See HubLock; seconds.
    """

    def __init__(
        self,
        *,
        store: Store,
        fetcher: Fetcher,
        inspector: Inspector,
        lock_patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._inspector = inspector
        self._lock_patience = lock_patience
        self._flights: SingleFlight[_HeldFile, Progress] = SingleFlight(release=self._release)
        self._inspections: SingleFlight[None, Progress] = SingleFlight()
        self._waiters: Counter[RemoteSource] = Counter()
        self._fetching: defaultdict[RemoteSource, set[str]] = defaultdict(set)

    @contextlib.contextmanager
    def waited_for(self, source: RemoteSource) -> Iterator[None]:
        """Let the files of ``source`` go first, those under way included."""
        self._waiters[source] += 1
        for key in self._fetching.get(source, ()):
            self._fetcher.hurry(key)
        try:
            yield
        finally:
            self._waiters[source] -= 1
            if not self._waiters[source]:
                del self._waiters[source]

    async def at_hand(
        self, wanted: Wanted, commit: str, progress: SourceProgress, *, inspected: bool
    ) -> VerifiedFiles | None:
        """The files of a commit if all of them are in the cache, with nobody asked.

        Args:
            wanted: The source and its files.
            commit: The commit; empty for a source that has none, of which nothing is known so.
            progress: Told of the work.
            inspected: Whether a checkpoint must be safe to load, and is given its index.

        Raises:
            UnsafeCheckpoint, NotACheckpoint: One of them must not be loaded.
        """
        source = wanted.source
        if not isinstance(source, HubSource) or not commit:
            return None
        files: Mapping[str, tuple[Verified, Promise]] | None = None
        # The commit is published under another of the repository's revisions: it stays as it is.
        if source.is_pinned and (
            known := await self._store.published_elsewhere(source, wanted.filenames)
        ):
            files = {
                record.filename: (self._store.as_verified(record), record.promise)
                for record in known.files
            }
        # A blob's name is its digest, so that a snapshot of huggingface_hub's can be verified
        # whole. If one file is missing or wrong, the Hub is asked about all of them.
        else:
            progress.tell(None, 0, None, "verifying")
            files = await self._store.adopt_snapshot(source, commit, wanted.filenames)
        if files is None:
            return None
        for filename, (verified, _) in files.items() if inspected else ():
            await self._inspect(progress, filename, verified)
        return VerifiedFiles(source, files, commit)

    @contextlib.asynccontextmanager
    async def hold(
        self, description: Description, progress: SourceProgress, *, inspected: bool
    ) -> AsyncIterator[VerifiedFiles]:
        """Acquire all files of a description; they are where they are said to be until the end.

        Args:
            description: The files, which are published as one.
            progress: Told how far each file has come.
            inspected: As for at_hand.

        Raises:
            CraftcacheError: One of them cannot be had, is not what was promised, or is unsafe to
                load. The others are let go.
        """
        reception = StallDetector()
        heard = progress.heard_by(reception.heard)
        async with contextlib.AsyncExitStack() as held:
            verified = await all_results(
                held.enter_async_context(
                    self._hold_file(file, heard, reception, inspected=inspected)
                )
                for file in description.files
            )
            files = {
                file.filename: (each, file.promise)
                for file, each in zip(description.files, verified, strict=True)
            }
            yield VerifiedFiles(description.source, files, description.commit, description.is_named)

    async def inspect(self, record: FileRecord, progress: SourceProgress) -> None:
        """See that a published file was inspected, whoever published it, and that this is recorded.

        Raises:
            UnsafeCheckpoint, NotACheckpoint: It must not be served.
        """
        await self._inspect(progress, record.filename, self._store.as_verified(record))
        if is_checkpoint(record.filename) and record.index_sha256 not in self._store.indexes:
            await self._store.record_index(record.sha256)

    @contextlib.asynccontextmanager
    async def _hold_file(
        self,
        file: DescribedFile,
        progress: SourceProgress,
        reception: StallDetector,
        *,
        inspected: bool,
    ) -> AsyncIterator[Verified]:
        """Hold one file of a request; ``reception`` is of all files of that request."""
        async with contextlib.AsyncExitStack() as stack:
            if current := await self._current(file):
                # Beside the flights: a load that has what was published never waits for the
                # download of a newer version of it, which may be under way for a warm.
                held = _HeldFile.hold(current)
                stack.push_async_callback(self._release, held)
            else:
                held = await stack.enter_async_context(self._acquired(file, progress))
            with held.waiting_for(reception):
                if inspected:
                    await self._inspect(progress, file.filename, held.file)
                yield held.file

    def _acquired(
        self, file: DescribedFile, progress: SourceProgress
    ) -> contextlib.AbstractAsyncContextManager[_HeldFile]:
        async def work(tell: Callable[[Progress], None]) -> _HeldFile:
            return await self._acquire(file, SourceProgress(progress.source, tell))

        return self._flights.join(file.key, work, progress.relay(file.filename))

    async def _current(self, file: DescribedFile) -> Verified | None:
        """The file as it is published, where the source still stands for the same bytes."""
        record = file.current
        if record is None:
            return None
        return await self._store.verify(record)

    async def _acquire(self, file: DescribedFile, progress: SourceProgress) -> _HeldFile:
        """Find the file in the cache, or fetch it."""
        if file.blob:
            progress.tell(file.filename, 0, file.promise.size, "verifying")
        if present := await self._adopted(file) or await self._linked(file):
            return _HeldFile.hold(present)
        if file.blob is None:
            return _HeldFile.hold(await self._fetch(file, progress))
        await self._store.check_place(file.blob.source)
        tree = self._store.cache.hub_tree(file.blob.source.repo_id)
        lock = HubLock(tree, file.blob.etag, patience=self._lock_patience)
        try:
            # Another program may have been faster while we waited for its lock; what it left is
            # believed only if it is right.
            was_brought = await lock.acquire()
            present = await self._adopted(file) if was_brought else None
            if present is None:
                own = StallDetector()
                with lock.waiting_for(own):
                    present = await self._fetch(file, progress.heard_by(own.heard))
            return _HeldFile.hold(present, lock)
        except BaseException:
            lock.release()
            raise

    async def _adopted(self, file: DescribedFile) -> Verified | None:
        """The file as somebody else put it into huggingface_hub's tree, hashed."""
        if file.blob is None:
            return None
        return await self._store.adopt(file.blob.source, file.blob.etag, file.promise)

    async def _linked(self, file: DescribedFile) -> Verified | None:
        """The same bytes as another model has them, under a name of our own in staging."""
        digest, staging = file.promise.digest, self._store.cache.staging
        if digest is not None and digest.algorithm == "sha256":
            found = await self._store.find(digest.hex, staging)
            return found and replace(found, etag=file.blob.etag if file.blob else None)
        if file.is_unseen:
            return await self._store.find_signed(file.remote.url, digest, staging)
        return None

    async def _fetch(self, file: DescribedFile, progress: SourceProgress) -> Verified:
        """Bring the file from its origin into staging."""

        def report(done: int, total: int | None) -> None:
            progress.tell(file.filename, done, total, "fetching")

        report(0, file.promise.size)
        await self._store.heal()
        is_urgent = self._waiters[progress.source] > 0
        self._fetching[progress.source].add(file.remote.key)
        try:
            fetched = await self._fetcher.fetch(
                file.remote,
                priority=Priority.WAITED_FOR if is_urgent else Priority.BACKGROUND,
                report=report,
            )
        finally:
            self._fetching[progress.source].discard(file.remote.key)
            if not self._fetching[progress.source]:
                del self._fetching[progress.source]
        return Verified(
            HashedFile(fetched.path, fetched.digests, fetched.stamp),
            file.blob.etag if file.blob else fetched.etag,
            fetched.bytes_fetched,
            fetched.bytes_reused,
        )

    async def _inspect(self, progress: SourceProgress, filename: str, file: Verified) -> None:
        """Refuse what cannot be loaded safely; write the index of what can.

        Content that several wait for is looked into once.
        """
        sha256, size = file.digests.sha256, file.digests.size

        async def work(tell: Callable[[Progress], None]) -> None:
            SourceProgress(progress.source, tell).tell(filename, size, size, "inspecting")
            index = await self._inspector.inspect(file.path, source=progress.source.shown)
            await self._store.write_index(sha256, index)

        try:
            if is_checkpoint(filename) and not await self._store.has_index(sha256, size):
                async with self._inspections.join(sha256, work, progress.relay(filename)):
                    pass
        except (NotACheckpoint, UnsafeCheckpoint) as error:
            raise error.about(progress.source.shown).in_file(filename) from error
        except CraftcacheError as error:  # of work that others, too, may have waited for
            raise error.about(progress.source.shown) from error

    async def _release(self, held: _HeldFile) -> None:
        try:
            await self._store.discard(held.file)
        finally:
            # The last descriptor of a file without a name gives its bytes back, which takes time.
            await asyncio.shield(asyncio.to_thread(os.close, held.descriptor))
            if held.lock is not None:
                held.lock.release()
