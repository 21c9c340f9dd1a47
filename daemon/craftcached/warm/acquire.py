"""A described file, whole and verified, from wherever it can be had most cheaply.

    published and current -> in the Hub's tree -> in another model -> fetched

FileAcquirer decides this; a fetch goes to a mirror or to the origin, which fetch.mirrors.Route
decides for each range.

A file that several requests want at once is acquired once: files are the same if the origin
promises the same digest, or without one if they have the same address. A fetched file stays in
staging, and huggingface_hub's lock of its blob stays held, until the last request that uses it
ends: it has published the file by then, or the file is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.cache.publish import Verified
from craftcache.digests import HashedFile
from craftcache.sources import HubSource
from craftcached.fetch import Priority
from craftcached.singleflight import SingleFlight

from .description import VerifiedFiles
from .hub_lock import PATIENCE_SECONDS, HubLock
from .progress import SourceProgress
from .stalls import StallDetector
from .tasks import all_results

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping

    from craftcache.digests import Promise
    from craftcache.sources import RemoteSource
    from craftcache.wire import Progress
    from craftcached.fetch import Fetcher
    from craftcached.store.store import Store

    from .description import DescribedFile, Description, Wanted
    from .inspections import CheckpointInspections

__all__ = ["FileAcquirer"]


@dataclass(frozen=True, slots=True)
class _HeldFile:
    """A verified file, and the lock that keeps other programs from fetching it too.

    The file is held open, and so is in use: the model that has it now is not evicted meanwhile.

    Attributes:
        file: The file.
        descriptor: An open descriptor of it.
        lock: huggingface_hub's lock of its blob; None for a file that was not fetched under one.
    """

    file: Verified
    descriptor: int
    lock: HubLock | None = None

    @classmethod
    def hold(cls, file: Verified, lock: HubLock | None = None) -> _HeldFile:
        # O_NONBLOCK: others may have put a pipe there. What it is, its publication looks at.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        return cls(file, os.open(file.path, flags), lock)

    def waiting_for(self, stalls: StallDetector) -> contextlib.AbstractContextManager[None]:
        """A context in which the lock is kept while the request's other files still progress."""
        return self.lock.waiting_for(stalls) if self.lock else contextlib.nullcontext()


class FileAcquirer:
    """Acquires files, each once for all who want it; one instance a daemon.

    The mutable state, all of it changed on the event loop between awaits, so that none needs a
    lock:

    - the files that are being acquired or are held, by DescribedFile.key;
    - how many requests wait for each source at this moment;
    - the fetch engine's keys of the files that are being fetched, by source.

    Lock order: huggingface_hub's lock of a blob, then the engine's lock of its key, then, with the
    first still held, the store's WritersLock to publish. A request takes the locks of its several
    blobs in no order. That cannot deadlock: requests of this daemon for one blob share one lock,
    unmodified programs hold one at a time, and a worker that fetches for itself waits only seconds
    for each of its several; a holder that makes no progress is passed by.

    Args:
        store: The store, which may have a file already.
        fetcher: Downloads a file into staging and verifies it.
        inspections: Has checkpoints inspected.
        lock_patience: Seconds without progress after which HubLock passes a holder by.
    """

    def __init__(
        self,
        *,
        store: Store,
        fetcher: Fetcher,
        inspections: CheckpointInspections,
        lock_patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._store = store
        self._local = store.local
        self._fetcher = fetcher
        self._inspections = inspections
        self._lock_patience = lock_patience
        self._flights: SingleFlight[_HeldFile, Progress] = SingleFlight(release=self._release)
        self._waiters: Counter[RemoteSource] = Counter()
        self._fetching: defaultdict[RemoteSource, set[str]] = defaultdict(set)

    @contextlib.contextmanager
    def waited_for(self, source: RemoteSource) -> Iterator[None]:
        """A context in which fetches for ``source`` go first, those under way included."""
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
        """The files of a commit if all of them are in the cache; asks no origin. None otherwise.

        Args:
            wanted: The source and its files.
            commit: The commit; empty for a source without one, whose files are never at hand.
            progress: Told of the work.
            inspected: Whether checkpoints are inspected, which refuses unsafe ones, and indexed.

        Raises:
            UnsafeCheckpoint, NotACheckpoint: One of them must not be loaded.
        """
        source = wanted.source
        if not isinstance(source, HubSource) or not commit:
            return None
        files: Mapping[str, tuple[Verified, Promise]] | None = None
        # The commit is published under another of the repository's revisions: it stays as it is.
        is_fixed = source.is_pinned or wanted.commit
        if is_fixed and (known := await self._local.published_at(source, commit, wanted.filenames)):
            files = {
                record.filename: (self._local.as_verified(record), record.promise)
                for record in known.files
            }
        # A blob's name is its digest, so a snapshot that huggingface_hub made can be verified
        # without the Hub. If one file is missing or wrong, the Hub is asked about all of them.
        else:
            progress.tell(None, 0, None, "verifying")
            files = await self._local.adopt_snapshot(source, commit, wanted.filenames)
        if files is None:
            return None
        for filename, (verified, _) in files.items() if inspected else ():
            await self._inspections.inspect(
                progress, filename, verified, is_asked_by_name=filename in wanted.named
            )
        return VerifiedFiles(source, files, commit)

    @contextlib.asynccontextmanager
    async def hold(
        self,
        description: Description,
        progress: SourceProgress,
        *,
        inspected: bool,
        named: Collection[str] | None = None,
    ) -> AsyncIterator[VerifiedFiles]:
        """Acquire all files of a description; their paths are valid until the context ends.

        Args:
            description: The files, which are published as one.
            progress: Told the progress of each file.
            inspected: As for at_hand.
            named: Names of the files that must be checkpoints; None for all of them.

        Raises:
            CraftcacheError: One of them cannot be fetched, is not what was promised, or is unsafe
                to load. The others are released.
        """
        stalls = StallDetector()
        heard = progress.heard_by(stalls.heard)
        async with contextlib.AsyncExitStack() as held:
            verified = await all_results(
                held.enter_async_context(
                    self._hold_file(
                        file,
                        heard,
                        stalls,
                        inspected=inspected,
                        is_asked_by_name=named is None or file.filename in named,
                    )
                )
                for file in description.files
            )
            files = {
                file.filename: (each, file.promise)
                for file, each in zip(description.files, verified, strict=True)
            }
            yield VerifiedFiles(
                description.source,
                files,
                description.commit,
                description.is_named,
                description.mirror,
            )

    @contextlib.asynccontextmanager
    async def _hold_file(
        self,
        file: DescribedFile,
        progress: SourceProgress,
        stalls: StallDetector,
        *,
        inspected: bool,
        is_asked_by_name: bool,
    ) -> AsyncIterator[Verified]:
        """Hold one file of a request; ``stalls`` watches all files of that request."""
        async with contextlib.AsyncExitStack() as stack:
            if current := await self._current(file):
                # Not shared with other requests: a load of the published version must not wait
                # for a warm that is downloading a newer one.
                held = _HeldFile.hold(current)
                stack.push_async_callback(self._release, held)
            else:
                held = await stack.enter_async_context(self._acquired(file, progress))
            with held.waiting_for(stalls):
                if inspected:
                    await self._inspections.inspect(
                        progress, file.filename, held.file, is_asked_by_name=is_asked_by_name
                    )
                yield held.file

    def _acquired(
        self, file: DescribedFile, progress: SourceProgress
    ) -> contextlib.AbstractAsyncContextManager[_HeldFile]:
        async def work(tell: Callable[[Progress], None]) -> _HeldFile:
            return await self._acquire(file, SourceProgress(progress.source, tell))

        return self._flights.join(file.key, work, progress.relay(file.filename))

    async def _current(self, file: DescribedFile) -> Verified | None:
        """The published file, if the source still has the same bytes; None otherwise."""
        record = file.current
        if record is None:
            return None
        return await self._store.verify(record)

    async def _acquire(self, file: DescribedFile, progress: SourceProgress) -> _HeldFile:
        """Find the file in the cache, or fetch it."""
        # A file of that name may be in huggingface_hub's tree, and hashing it takes seconds.
        if file.blob:
            progress.tell(file.filename, 0, file.promise.size, "verifying")
        # Only files in huggingface_hub's tree have a lock that other programs know.
        if file.blob is None:
            present = await self._linked(file)
            return _HeldFile.hold(present or await self._fetch(file, progress))
        blob = file.blob
        if present := await self._local.adopt_or_find(blob.source, blob.etag, file.promise):
            return _HeldFile.hold(present)
        tree = self._store.cache.hub_tree(blob.source.repo_id)
        lock = HubLock(tree, blob.etag, patience=self._lock_patience)
        try:
            # Another program may have fetched the blob while we waited for its lock; the blob is
            # used only if its hash is right.
            was_brought = await lock.acquire()
            present = None
            if was_brought:
                present = await self._local.adopt(blob.source, blob.etag, file.promise)
            if present is None:
                own = StallDetector()
                with lock.waiting_for(own):
                    present = await self._fetch(file, progress.heard_by(own.heard))
            return _HeldFile.hold(present, lock)
        except BaseException:
            lock.release()
            raise

    async def _linked(self, file: DescribedFile) -> Verified | None:
        """The same bytes from another model, linked under a name of our own in staging."""
        digest, staging = file.promise.digest, self._store.cache.staging
        if digest is not None and digest.algorithm == "sha256":
            return await self._local.find(digest.hex, staging)
        if file.is_unseen:
            return await self._local.find_signed(file.remote.url, digest, staging)
        return None

    async def _fetch(self, file: DescribedFile, progress: SourceProgress) -> Verified:
        """Download the file from its origin into staging."""

        def report(done: int, total: int | None) -> None:
            progress.tell(file.filename, done, total, "fetching")

        report(0, file.promise.size)
        await self._store.lock.heal()
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

    async def _release(self, held: _HeldFile) -> None:
        def discard_and_close() -> None:
            try:
                self._store.cache.discard(held.file.file)
            finally:
                # Closing the last descriptor of an unlinked file frees its blocks: takes time.
                os.close(held.descriptor)

        try:
            await asyncio.shield(asyncio.to_thread(discard_and_close))
        finally:
            if held.lock is not None:
                held.lock.release()
