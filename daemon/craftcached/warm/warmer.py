"""Bringing models into the cache: from a source's name to a published manifest.

    describe (origin) -> obtain all files -> publish -> likewise what it needs

A source that is asked for twice at once is brought once. Its files stay in staging until all of
them are verified, so that a request that fails leaves nothing behind. What a model needs is brought
after it was published, and is verified like any source; but nobody is handed it to load, so it
is not inspected until somebody asks for it by name.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from craftcache.errors import CraftcacheError, NotFound, PolicyDenied
from craftcache.sources import (
    HubSource,
    UrlSource,
    shown_url,
    wanted_files,
)
from craftcached.fetch import Priority
from craftcached.singleflight import SingleFlight

from .acquire import Teller
from .allow import is_allowed
from .stalls import StallDetector

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from craftcache.cache.manifest import Manifest
    from craftcache.cache.publish import Verified
    from craftcache.dependencies import Dependency
    from craftcache.digests import Promise
    from craftcache.origins.hub import HubFile
    from craftcache.sources import RemoteSource
    from craftcache.wire import Progress
    from craftcached.store.store import Store

    from .acquire import FileAcquirer
    from .origins import HubOrigin

__all__ = ["Warmer", "Warmed"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Warmed:
    """What became of a request.

    Attributes:
        manifest: All that is published of the source now.
        bytes_fetched: That came over the network for this request and those it shared it with.
        bytes_reused: That were in the cache before, in whatever form.
        resident_bytes: Of the files asked for, that are in memory; None where that was not asked
            for, or is not known.
    """

    manifest: Manifest
    bytes_fetched: int
    bytes_reused: int
    resident_bytes: int | None = None


class Warmer:
    """Makes sources present, verified and published; one instance a daemon.

    Args:
        store: Where they are published.
        hub: Describes what is in repositories.
        obtainer: Brings their files.
        allow: Patterns of sources that this node may fetch.
    """

    def __init__(
        self, *, store: Store, hub: HubOrigin, obtainer: FileAcquirer, allow: tuple[str, ...]
    ) -> None:
        self._store = store
        self._hub = hub
        self._obtainer = obtainer
        self._allow = allow
        self._requests: SingleFlight[Warmed, Progress] = SingleFlight()

    @property
    def running(self) -> int:
        """How many different requests are being worked on."""
        return len(self._requests)

    def progress(self) -> list[Progress]:
        """How far each of them has come."""
        return self._requests.latest()

    def allow(self, patterns: tuple[str, ...]) -> None:
        """Fetch by these patterns from now on; what is under way goes on."""
        self._allow = patterns

    async def ensure(
        self,
        source: HubSource | UrlSource,
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
        if not refresh and (manifest := await self.recheck(source, names, report)):
            if manifest.needed_only:
                await self._store.mark_asked_for(source)
            return Warmed(manifest, 0, manifest.size)
        self.check_allowed(source)
        key = (source, frozenset(names), refresh)
        try:
            async with contextlib.AsyncExitStack() as stack:
                if priority is Priority.WAITED_FOR:
                    stack.enter_context(self._obtainer.waited_for(source))
                return await stack.enter_async_context(
                    self._requests.join(
                        key, lambda tell: self._bring(Teller(source, tell), names, refresh), report
                    )
                )
        except CraftcacheError as error:  # of work that others, too, may have waited for
            raise error.about(source.shown) from error

    async def ensure_needs(
        self, manifest: Manifest, *, report: Callable[[Progress], None]
    ) -> list[Manifest]:
        """Make present, at its newest revision, what a published model needs.

        All of it is tried.

        Args:
            manifest: Of the model.
            report: Called with progress; must not block.

        Returns:
            What was needed, and what that needs in turn.

        Raises:
            CraftcacheError: The first failure, as one of the model; it says what is needed and why.
        """
        met: dict[Dependency, Manifest] = {}
        wanted = manifest.needs
        while wanted := tuple(need for need in wanted if need not in met):
            outcomes = await _all(self._try_need(need, report) for need in wanted)
            for need, outcome in zip(wanted, outcomes, strict=True):
                if isinstance(outcome, CraftcacheError):
                    raise _for_need(manifest, need, outcome)
                met[need] = outcome
            wanted = tuple(need for each in met.values() for need in each.needs)
        return list(met.values())

    async def recheck(
        self, source: RemoteSource, names: Sequence[str], report: Callable[[Progress], None]
    ) -> Manifest | None:
        """What is published of a source, all of it verified and inspected; None where it is not.

        What was touched since it was verified is hashed again. A worker that had no daemon
        publishes without an index, and one that was damaged is made anew.

        Raises:
            UnsafeCheckpoint, NotACheckpoint: It must not be served.
        """
        manifest = await self._store.recheck(source, names)
        for record in (manifest.select(source, names) if manifest else None) or ():
            await self._obtainer.inspect(source, record, report)
        return manifest

    def check_allowed(self, source: RemoteSource) -> None:
        """Raise PolicyDenied unless this node may fetch ``source``."""
        if not any(is_allowed(source, pattern) for pattern in self._allow):
            raise PolicyDenied(
                "this node does not fetch it",
                source=source.shown,
                hint="The administrator lists what may be fetched in the setting allow",
            )

    async def _try_need(
        self, need: Dependency, report: Callable[[Progress], None]
    ) -> Manifest | CraftcacheError:
        """Make a need present; returns how that failed where it did."""
        source = need.parsed
        known = self._store.needed(need)
        if known is not None and isinstance(source, UrlSource):
            return known  # its name carries its hash: nothing newer can stand there
        try:
            self.check_allowed(source)
            async with self._requests.join(
                (source, need), lambda tell: self._bring_need(Teller(source, tell), need), report
            ) as warmed:
                return warmed.manifest
        except CraftcacheError as error:
            return error.about(source.shown)

    async def _bring_need(self, teller: Teller, need: Dependency) -> Warmed:
        source, names = teller.source, need.filenames
        if isinstance(source, HubSource) and not need.is_fixed:
            names = need.choose(await self._hub.files(source))
        return await self._bring(teller, wanted_files(source, names), refresh=True, as_need=True)

    async def _bring(
        self, teller: Teller, names: tuple[str, ...], refresh: bool, *, as_need: bool = False
    ) -> Warmed:
        match teller.source:
            case HubSource() as source:
                warmed = await self._bring_hub(teller, source, names, refresh, as_need=as_need)
            case UrlSource() as source:
                warmed = await self._bring_url(teller, source, names, refresh, as_need=as_need)
        teller.tell(None, warmed.manifest.size, warmed.manifest.size, "done")
        return warmed

    async def _bring_hub(
        self,
        teller: Teller,
        source: HubSource,
        names: tuple[str, ...],
        refresh: bool,
        *,
        as_need: bool,
    ) -> Warmed:
        if source.is_pinned and (known := await self._store.published_elsewhere(source, names)):
            files = {
                record.filename: (self._store.as_verified(record), record.promise)
                for record in known.files
            }
            return await self._publish_hub(source, known.revision, files, is_named=False)
        manifest = self._store.manifest(source)
        inspected = _is_inspected(manifest, as_need=as_need)
        revision = source.revision
        if manifest is not None and not refresh:
            revision = manifest.revision
        if (source.is_pinned or revision != source.revision) and (
            present := await self._obtainer.hub_snapshot(
                teller, source, revision, names, inspected=inspected
            )
        ):
            return await self._publish_hub(source, revision, present, is_named=False)
        described = await self._hub.describe(source, names, revision)
        commit = described[0].commit
        if manifest is not None and refresh:
            described += await self._describe_others(source, manifest, names, commit)
        reception = StallDetector()
        async with contextlib.AsyncExitStack() as held:
            obtained = await _all(
                held.enter_async_context(
                    self._obtainer.hub_file(
                        source, file, teller.report, reception=reception, inspected=inspected
                    )
                )
                for file in described
            )
            files = {
                file.filename: (verified, file.promise)
                for file, verified in zip(described, obtained, strict=True)
            }
            teller.tell(None, 0, None, "publishing")
            is_named = revision == source.revision
            return await self._publish_hub(
                source, commit, files, is_named=is_named, as_need=as_need
            )

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
        self,
        source: HubSource,
        commit: str,
        files: dict[str, tuple[Verified, Promise]],
        *,
        is_named: bool,
        as_need: bool = False,
    ) -> Warmed:
        origin = self._hub.shown(source, commit)
        manifest = await self._store.publish_hub(
            source, commit, files, origin, is_named=is_named, as_need=as_need
        )
        return _summary(manifest, [verified for verified, _ in files.values()])

    async def _bring_url(
        self,
        teller: Teller,
        source: UrlSource,
        names: tuple[str, ...],
        refresh: bool,
        *,
        as_need: bool,
    ) -> Warmed:
        manifest = self._store.manifest(source)
        inspected = _is_inspected(manifest, as_need=as_need)
        if manifest is not None and refresh:
            names = tuple(dict.fromkeys((*names, *(r.filename for r in manifest.files))))
        async with contextlib.AsyncExitStack() as held:
            obtained = await _all(
                held.enter_async_context(
                    self._obtainer.url_file(
                        source, name, teller.report, refresh=refresh, inspected=inspected
                    )
                )
                for name in names
            )
            files = {
                name: (verified, shown_url(source.file_url(name)))
                for name, verified in zip(names, obtained, strict=True)
            }
            teller.tell(None, 0, None, "publishing")
            published = await self._store.publish_url(source, files, as_need=as_need)
        return _summary(published, obtained)


def _is_inspected(known: Manifest | None, *, as_need: bool) -> bool:
    """Whether what is brought must be safe to load: all that somebody asked for by name is."""
    return not as_need or (known is not None and not known.needed_only)


def _for_need(manifest: Manifest, need: Dependency, error: CraftcacheError) -> CraftcacheError:
    """The failure of a need as one of the model, which itself is published."""
    failure = error.about(manifest.source)
    failure.message = f"{need.parsed.shown} is missing, {need.why}: {error.message}"
    failure.hint = ". ".join(filter(None, (error.hint, "Or leave it out with --pair-only")))
    return failure


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
