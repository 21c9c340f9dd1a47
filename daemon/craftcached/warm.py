"""Bringing models into the cache: from a source's name to a published manifest.

    describe (origin) -> adopt | find | fetch -> inspect -> publish

Everything that is asked for twice at once happens once: a source by its name, a file by its
content. A file stays in staging until all files of its request are verified, so a request that
fails leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from craftcache.errors import NotFound, PolicyDenied
from craftcache.publish import Verified
from craftcache.sources import HubSource, UrlSource, WatchSource, shown_url, wanted_files
from craftcache.verify import Digest, Digests, Promise
from craftcache.wire import Progress

from .flights import Flights

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence

    from craftcache.hub import HubFile
    from craftcache.manifest import FileRecord, Manifest
    from craftcache.sources import RemoteSource
    from craftcache.wire import State

    from .fetch import Fetcher, Priority, RemoteFile
    from .inspect import Inspector
    from .origins import HubOrigin, UrlOrigin
    from .store import Store

__all__ = ["Warmer", "Warmed"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Warmed:
    """What became of a request.

    Attributes:
        manifest: All that is published of the source now.
        bytes_fetched: That came over the network for this request and those it shared it with.
        bytes_reused: That were in the cache before, in whatever form.
    """

    manifest: Manifest
    bytes_fetched: int
    bytes_reused: int


class Warmer:
    """Makes sources present, verified and published; one instance a daemon.

    Args:
        store: Where they are published.
        hub: The Hub.
        urls: Everything else.
        fetcher: Brings bytes into staging, verified.
        inspector: Says whether a checkpoint is safe, and what it holds.
        allow: Patterns of sources that this node may fetch.
    """

    def __init__(
        self,
        *,
        store: Store,
        hub: HubOrigin,
        urls: UrlOrigin,
        fetcher: Fetcher,
        inspector: Inspector,
        allow: tuple[str, ...],
    ) -> None:
        self._store = store
        self._hub = hub
        self._urls = urls
        self._fetcher = fetcher
        self._inspector = inspector
        self._allow = allow
        self._requests: Flights[Warmed, Progress] = Flights()
        self._files: Flights[Verified, Progress] = Flights(release=store.discard)
        self._publishing: dict[str, asyncio.Lock] = {}

    @property
    def running(self) -> int:
        """How many different requests are being worked on."""
        return len(self._requests)

    async def ensure(
        self,
        source: RemoteSource,
        filenames: Sequence[str] = (),
        *,
        refresh: bool,
        priority: Priority,
        report: Callable[[Progress], None],
    ) -> Warmed:
        """Make ``filenames`` of ``source`` present; returns once they are published.

        Args:
            source: What the user named.
            filenames: Files of it; none means an export's pair, or a URL's one file.
            refresh: Ask the origin whether there is something newer. Without it, what was warmed
                last is what counts, and the origin is asked only for what is missing.
            priority: Who goes first when connections are scarce.
            report: Called with progress; must not block.

        Raises:
            CraftcacheError: Any of the tree but those of loading.
        """
        names = wanted_files(source, filenames)
        if not refresh and (manifest := self._store.intact(source, names)):
            return Warmed(manifest, 0, manifest.size)
        self._check_allowed(source)
        key = (source, frozenset(names), refresh)
        async with self._requests.join(
            key, lambda tell: self._bring(source, names, refresh, priority, tell), report
        ) as warmed:
            return warmed

    async def remove(self, source: RemoteSource) -> int:
        """Remove a model; see Store.remove."""
        async with self._publication(source):
            return await self._store.remove(source)

    def _check_allowed(self, source: RemoteSource) -> None:
        if not any(fnmatch.fnmatchcase(str(source), pattern) for pattern in self._allow):
            raise PolicyDenied(
                "this node does not fetch it",
                source=source.shown,
                hint="The administrator lists what may be fetched in the setting allow",
            )

    async def _bring(
        self,
        source: RemoteSource,
        names: tuple[str, ...],
        refresh: bool,
        priority: Priority,
        report: Callable[[Progress], None],
    ) -> Warmed:
        request = _Request(source, priority, report)
        match source:
            case HubSource():
                warmed = await self._bring_hub(request, source, names, refresh)
            case UrlSource():
                warmed = await self._bring_url(request, source, names, refresh)
            case WatchSource():
                raise NotFound("no such watch", source=str(source), hint="craftcache watch ls")
        request.tell(None, warmed.manifest.size, warmed.manifest.size, "done")
        return warmed

    async def _bring_hub(
        self, request: _Request, source: HubSource, names: tuple[str, ...], refresh: bool
    ) -> Warmed:
        if source.is_pinned and (known := await self._store.published_elsewhere(source, names)):
            files = {r.filename: _as_published(self._store, r) for r in known.files}
            return await self._publish_hub(source, known.revision, files)
        manifest = self._store.manifest(source)
        revision = source.revision
        if manifest is not None and not refresh:
            revision = manifest.revision
        described = await self._hub.describe(source, names, revision)
        commit = described[0].commit
        if manifest is not None and refresh:
            described += await self._describe_others(source, manifest, names, commit)
        async with contextlib.AsyncExitStack() as held:
            obtained = await _all(
                held.enter_async_context(self._hub_file(request, source, file))
                for file in described
            )
            files = {
                file.filename: (verified, file.promise)
                for file, verified in zip(described, obtained, strict=True)
            }
            request.tell(None, 0, None, "publishing")
            return await self._publish_hub(source, commit, files)

    async def _describe_others(
        self, source: HubSource, manifest: Manifest, names: tuple[str, ...], commit: str
    ) -> list[HubFile]:
        """The files that were asked for earlier, as far as the new commit still has them."""
        described = []
        for record in manifest.files:
            if record.filename not in names:
                with contextlib.suppress(NotFound):
                    described += await self._hub.describe(source, [record.filename], commit)
        return described

    async def _publish_hub(
        self, source: HubSource, commit: str, files: dict[str, tuple[Verified, Promise]]
    ) -> Warmed:
        async with self._publication(source):
            origin = self._hub.shown(source, commit)
            manifest = await self._store.publish_hub(source, commit, files, origin)
        return _summary(manifest, [verified for verified, _ in files.values()])

    async def _bring_url(
        self, request: _Request, source: UrlSource, names: tuple[str, ...], refresh: bool
    ) -> Warmed:
        manifest = self._store.manifest(source)
        if manifest is not None and refresh:
            names = tuple(dict.fromkeys((*names, *(r.filename for r in manifest.files))))
        async with contextlib.AsyncExitStack() as held:
            obtained = await _all(
                held.enter_async_context(self._url_file(request, source, name, refresh=refresh))
                for name in names
            )
            files = {
                name: (verified, shown_url(source.file_url(name)))
                for name, verified in zip(names, obtained, strict=True)
            }
            request.tell(None, 0, None, "publishing")
            async with self._publication(source):
                published = await self._store.publish_url(source, files)
        return _summary(published, obtained)

    def _hub_file(
        self, request: _Request, source: HubSource, file: HubFile
    ) -> contextlib.AbstractAsyncContextManager[Verified]:
        async def work(report: Callable[[Progress], None]) -> Verified:
            mine = request.telling(report)
            present = await self._present(mine, source, file)
            if present is None:
                remote = self._hub.remote_file(source, file)
                present = await self._fetch(mine, remote, file.filename, etag=file.etag)
            await self._inspect(mine, file.filename, present)
            return present

        return self._files.join((source.repo_id, file.etag), work, request.report)

    async def _present(
        self, request: _Request, source: HubSource, file: HubFile
    ) -> Verified | None:
        """The file as it is in the cache already: verified by us, in the Hub's tree, elsewhere."""
        manifest = self._store.intact(source, [file.filename])
        record = manifest.file(file.filename) if manifest else None
        if record is not None and record.etag == file.etag:
            return _as_published(self._store, record)[0]
        request.tell(file.filename, 0, file.promise.size, "verifying")
        adopted = await self._store.adopt(source, file.etag, file.promise)
        digest = file.promise.digest
        if adopted is not None or digest is None or digest.algorithm != "sha256":
            return adopted
        return await self._linked(digest.hex, file.etag)

    def _url_file(
        self, request: _Request, source: UrlSource, filename: str, *, refresh: bool
    ) -> contextlib.AbstractAsyncContextManager[Verified]:
        async def work(report: Callable[[Progress], None]) -> Verified:
            mine = request.telling(report)
            remote = self._urls.remote_file(source, filename)
            present = await self._unchanged(source, filename, remote.promise, refresh=refresh)
            if present is None:
                present = await self._fetch(mine, remote, filename, etag=None)
            await self._inspect(mine, filename, present)
            return present

        key = (source.file_url(filename), source.file_digest(filename), refresh)
        return self._files.join(key, work, request.report)

    async def _unchanged(
        self, source: UrlSource, filename: str, promise: Promise, *, refresh: bool
    ) -> Verified | None:
        """The file as it was published before, where it is still what the URL stands for."""
        if promise.digest is not None and promise.digest.algorithm == "sha256":
            return await self._linked(promise.digest.hex, None)
        manifest = self._store.intact(source, [filename])
        record = manifest.file(filename) if manifest else None
        if record is None:
            return None
        if refresh:
            etag = await self._urls.etag(source, filename)
            if etag is None or etag != record.etag:
                return None
        return _as_published(self._store, record)[0]

    async def _linked(self, sha256: str, etag: str | None) -> Verified | None:
        """The same bytes as another model has them."""
        path = await self._store.find(sha256)
        if path is None:
            return None
        size = path.stat().st_size
        return Verified(path, Digests(size, sha256), etag, 0, size)

    async def _fetch(
        self, request: _Request, remote: RemoteFile, filename: str, *, etag: str | None
    ) -> Verified:
        def report(done: int, total: int | None) -> None:
            request.tell(filename, done, total, "fetching")

        fetched = await self._fetcher.fetch(remote, priority=request.priority, report=report)
        return Verified(
            fetched.path,
            fetched.digests,
            etag or fetched.etag,
            fetched.bytes_fetched,
            fetched.bytes_reused,
        )

    async def _inspect(self, request: _Request, filename: str, file: Verified) -> None:
        if await self._store.has_index(file.digests.sha256):
            return
        request.tell(filename, file.digests.size, file.digests.size, "inspecting")
        try:
            index = await self._inspector.inspect(file.path, source=request.source.shown)
        except BaseException:
            self._store.discard(file)
            raise
        await self._store.write_index(file.digests.sha256, index)

    @contextlib.asynccontextmanager
    async def _publication(self, source: RemoteSource) -> AsyncIterator[None]:
        """One publication or removal of a source at a time; they read and write its manifest."""
        key = source.repo_id if isinstance(source, HubSource) else str(source)
        lock = self._publishing.setdefault(key, asyncio.Lock())
        async with lock:
            yield


@dataclass(frozen=True, slots=True)
class _Request:
    """Whose work is done, how urgently, and who hears of it."""

    source: RemoteSource
    priority: Priority
    report: Callable[[Progress], None]

    def tell(self, file: str | None, done: int, total: int | None, state: State) -> None:
        self.report(Progress(self.source.shown, file, done, total, state))

    def telling(self, report: Callable[[Progress], None]) -> _Request:
        return _Request(self.source, self.priority, report)


def _as_published(store: Store, record: FileRecord) -> tuple[Verified, Promise]:
    digests = Digests(record.size, record.sha256)
    path = store.cache.path(record)
    verified = Verified(path, digests, record.etag, 0, record.size, record.verified_at)
    return verified, Promise(record.size, Digest("sha256", record.sha256), record.etag)


def _summary(manifest: Manifest, files: Iterable[Verified]) -> Warmed:
    files = tuple(files)
    return Warmed(
        manifest,
        sum(file.bytes_fetched for file in files),
        sum(file.bytes_reused for file in files),
    )


async def _all(work: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """All results in order; the first failure cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(item) for item in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
