"""One file, whole and verified, wherever it can be had most cheaply.

    published before -> in the Hub's tree -> in another model -> at its origin

What is asked for twice at once is obtained once: files are known by their content where the origin
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
from craftcache.errors import CraftcacheError
from craftcache.wire import Progress
from craftcached.fetch import Priority
from craftcached.singleflight import SingleFlight

from .hub_lock import PATIENCE_SECONDS, HubLock
from .stalls import StallDetector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from craftcache.cache.manifest import FileRecord
    from craftcache.digests import Promise
    from craftcache.origins.hub import HubFile
    from craftcache.sources import HubSource, RemoteSource, UrlSource
    from craftcache.wire import State
    from craftcached.fetch import Fetcher, RemoteFile
    from craftcached.inspect import Inspector
    from craftcached.store.store import Store

    from .origins import HubOrigin, UrlOrigin

__all__ = ["FileAcquirer", "Teller"]


@dataclass(frozen=True, slots=True)
class Teller:
    """Whose work is done, and who hears of it."""

    source: RemoteSource
    report: Callable[[Progress], None]

    def tell(self, file: str | None, done: int, total: int | None, state: State) -> None:
        """Report how far it has come."""
        self.report(Progress(self.source.shown, file, done, total, state))

    def telling(self, listener: Callable[[Progress], None]) -> Teller:
        """Likewise, with somebody more who hears of it."""

        def report(progress: Progress) -> None:
            listener(progress)
            self.report(progress)

        return replace(self, report=report)


@dataclass(frozen=True, slots=True)
class _Obtained:
    """A verified file, and the lock that keeps others from fetching it before it is published.

    The file is held open, and so is in use: the model that has it now is not evicted meanwhile.
    """

    file: Verified
    descriptor: int
    lock: HubLock | None = None

    @classmethod
    def hold(cls, file: Verified, lock: HubLock | None = None) -> _Obtained:
        return cls(file, os.open(file.path, os.O_RDONLY | os.O_CLOEXEC), lock)

    def waiting_for(self, reception: StallDetector) -> contextlib.AbstractContextManager[None]:
        """While inside, it waits to be published with the other files of a request."""
        return self.lock.waiting_for(reception) if self.lock else contextlib.nullcontext()


class FileAcquirer:
    """Obtains files, each once for all who want it.

    Args:
        store: Where it may be, and what keeps the indexes.
        hub: The Hub.
        urls: Everything else.
        fetcher: Brings bytes into staging, verified.
        inspector: Says whether a checkpoint is safe, and what it holds.
        lock_patience: See HubLock.
    """

    def __init__(
        self,
        *,
        store: Store,
        hub: HubOrigin,
        urls: UrlOrigin,
        fetcher: Fetcher,
        inspector: Inspector,
        lock_patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._store = store
        self._hub = hub
        self._urls = urls
        self._fetcher = fetcher
        self._inspector = inspector
        self._lock_patience = lock_patience
        self._flights: SingleFlight[_Obtained, Progress] = SingleFlight(release=self._release)
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

    @contextlib.asynccontextmanager
    async def hub_file(
        self,
        source: HubSource,
        file: HubFile,
        report: Callable[[Progress], None],
        *,
        reception: StallDetector,
        inspected: bool,
    ) -> AsyncIterator[Verified]:
        """Hold a file of a repository; it is where it is said to be until the context ends.

        Args:
            source: The repository.
            file: As the Hub describes it.
            report: Called with progress.
            reception: Of the request that it is for: all of its files are published as one.
            inspected: Whether a checkpoint must be safe to load, and is given its index.

        Raises:
            CraftcacheError: It cannot be had, is not what was promised, or is unsafe to load.
        """

        async def work(tell: Callable[[Progress], None]) -> _Obtained:
            return await self._obtain_hub(Teller(source, tell), source, file)

        def report_mine(progress: Progress) -> None:  # another repository may have begun the work
            mine = replace(progress, source=source.shown, file=file.filename)
            reception.heard(mine)
            report(mine)

        async with self._flights.join(file.etag, work, report_mine) as obtained:
            with obtained.waiting_for(reception):
                if inspected:
                    await self._inspect(Teller(source, report), file.filename, obtained.file)
                yield obtained.file

    @contextlib.asynccontextmanager
    async def url_file(
        self,
        source: UrlSource,
        filename: str,
        report: Callable[[Progress], None],
        *,
        refresh: bool,
        inspected: bool,
    ) -> AsyncIterator[Verified]:
        """Hold a file of a URL; see hub_file.

        Args:
            source: The URL.
            filename: Which of its files.
            report: Called with progress.
            refresh: Whether to ask if the file is still the one that is published.
            inspected: As for hub_file.
        """

        async def work(tell: Callable[[Progress], None]) -> _Obtained:
            return await self._obtain_url(Teller(source, tell), source, filename)

        teller = Teller(source, report)
        if not refresh and (known := await self._known(source, filename)):
            held = _Obtained.hold(known)
            try:
                if inspected:
                    await self._inspect(teller, filename, known)
                yield known
            finally:
                await self._release(held)
            return
        # Whoever finds nothing published asks as a refresh does, so that all can wait for one.
        key = (source.file_url(filename), source.file_digest(filename))
        async with self._flights.join(key, work, report) as obtained:
            if inspected:
                await self._inspect(teller, filename, obtained.file)
            yield obtained.file

    async def hub_snapshot(
        self,
        teller: Teller,
        source: HubSource,
        commit: str,
        filenames: Iterable[str],
        *,
        inspected: bool,
    ) -> dict[str, tuple[Verified, Promise]] | None:
        """The files of a commit if all of them are in the Hub's tree, with nobody asked.

        Raises:
            CraftcacheError: One of them is unsafe to load.
        """
        teller.tell(None, 0, None, "verifying")
        files = await self._store.adopt_snapshot(source, commit, filenames)
        for filename, (verified, _) in (files or {}).items() if inspected else ():
            await self._inspect(teller, filename, verified)
        return files

    async def inspect(
        self, source: RemoteSource, record: FileRecord, report: Callable[[Progress], None]
    ) -> None:
        """See that a published file was inspected, whoever published it, and that this is recorded.

        Raises:
            UnsafeCheckpoint, NotACheckpoint: It must not be served.
        """
        await self._inspect(
            Teller(source, report), record.filename, self._store.as_verified(record)
        )
        if is_checkpoint(record.filename) and record.index_sha256 not in self._store.indexes:
            await self._store.record_index(record.sha256)

    async def _obtain_hub(self, teller: Teller, source: HubSource, file: HubFile) -> _Obtained:
        present = await self._present(teller, source, file)
        if present is not None:
            return _Obtained.hold(present)
        tree = self._store.cache.hub_tree(source.repo_id)
        lock = HubLock(tree, file.etag, patience=self._lock_patience)
        try:
            if await lock.acquire():
                present = await self._store.adopt(source, file.etag, file.promise)
            if present is None:
                remote, own = self._hub.remote_file(source, file), StallDetector()
                telling = teller.telling(own.heard)
                with lock.waiting_for(own):
                    present = await self._fetch(telling, remote, file.filename, etag=file.etag)
            return _Obtained.hold(present, lock)
        except BaseException:
            lock.release()
            raise

    async def _obtain_url(self, teller: Teller, source: UrlSource, filename: str) -> _Obtained:
        remote = self._urls.remote_file(source, filename)
        present = await self._unchanged(source, filename, remote.promise)
        if present is None:
            present = await self._fetch(teller, remote, filename, etag=None)
        return _Obtained.hold(present)

    async def _present(self, teller: Teller, source: HubSource, file: HubFile) -> Verified | None:
        """The file as it is in the cache already: verified by us, in the Hub's tree, elsewhere."""
        record = self._published(source, file.filename)
        is_same = record is not None and record.etag == file.etag
        if record is not None and is_same and (known := await self._store.verify(record)):
            return known
        teller.tell(file.filename, 0, file.promise.size, "verifying")
        adopted = await self._store.adopt(source, file.etag, file.promise)
        digest = file.promise.digest
        if adopted is not None or digest is None or digest.algorithm != "sha256":
            return adopted
        return await self._linked(digest.hex, file.etag)

    async def _known(self, source: UrlSource, filename: str) -> Verified | None:
        """The file as it was published before; it must be what the URL says by itself."""
        record = self._published(source, filename)
        digest = source.file_digest(filename)
        if record is None or (digest is not None and not record.sha256.startswith(digest.hex)):
            return None
        return await self._store.verify(record)

    async def _unchanged(
        self, source: UrlSource, filename: str, promise: Promise
    ) -> Verified | None:
        """The file as it was published before, where it is still what the URL stands for."""
        if promise.digest is not None and promise.digest.algorithm == "sha256":
            return await self._linked(promise.digest.hex, None)
        record = self._published(source, filename)
        if record is None:
            return None
        etag = await self._urls.etag(source, filename)
        if etag is None or etag != record.etag:
            return None
        return await self._store.verify(record)

    def _published(self, source: RemoteSource, filename: str) -> FileRecord | None:
        manifest = self._store.manifest(source)
        records = manifest.select(source, [filename]) if manifest else None
        return records[0] if records else None

    async def _linked(self, sha256: str, etag: str | None) -> Verified | None:
        """The same bytes as another model has them."""
        found = await self._store.find(sha256, self._store.cache.staging)
        return found and replace(found, etag=etag)

    async def _fetch(
        self,
        teller: Teller,
        remote: RemoteFile,
        filename: str,
        *,
        etag: str | None,
    ) -> Verified:
        def report(done: int, total: int | None) -> None:
            teller.tell(filename, done, total, "fetching")

        report(0, remote.promise.size)
        await self._store.heal()
        is_urgent = self._waiters[teller.source] > 0
        self._fetching[teller.source].add(remote.key)
        try:
            fetched = await self._fetcher.fetch(
                remote,
                priority=Priority.WAITED_FOR if is_urgent else Priority.BACKGROUND,
                report=report,
            )
        finally:
            self._fetching[teller.source].discard(remote.key)
            if not self._fetching[teller.source]:
                del self._fetching[teller.source]
        return Verified(
            HashedFile(fetched.path, fetched.digests, fetched.stamp),
            etag or fetched.etag,
            fetched.bytes_fetched,
            fetched.bytes_reused,
        )

    async def _inspect(self, teller: Teller, filename: str, file: Verified) -> None:
        """Refuse what cannot be loaded safely; write the index of what can.

        Content that several wait for is looked into once.
        """
        sha256 = file.digests.sha256

        async def work(tell: Callable[[Progress], None]) -> None:
            Teller(teller.source, tell).tell(
                filename, file.digests.size, file.digests.size, "inspecting"
            )
            index = await self._inspector.inspect(file.path, source=teller.source.shown)
            await self._store.write_index(sha256, index)

        def report_mine(progress: Progress) -> None:
            teller.report(replace(progress, source=teller.source.shown, file=filename))

        try:
            size = file.digests.size
            if is_checkpoint(filename) and not await self._store.has_index(sha256, size):
                async with self._inspections.join(sha256, work, report_mine):
                    pass
        except CraftcacheError as error:  # of work that others, too, may have waited for
            raise error.about(teller.source.shown) from error

    async def _release(self, obtained: _Obtained) -> None:
        try:
            await self._store.discard(obtained.file)
        finally:
            # The last descriptor of a file without a name gives its bytes back, which takes time.
            await asyncio.shield(asyncio.to_thread(os.close, obtained.descriptor))
            if obtained.lock is not None:
                obtained.lock.release()
