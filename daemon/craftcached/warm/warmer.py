"""Warming: a source asked for by name or as a dependency is warmed once for all who ask.

Which files are wanted is decided here, and whether they are published already; the pipeline does
the rest. What a model needs is warmed after it was published, see dependencies.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.errors import Offline, PolicyDenied, Unavailable
from craftcache.sources import NO_SELECTION, HubSource, UrlSource, wanted_files
from craftcached.events import Events
from craftcached.fetch import Priority

from .dependencies import WarmedDependency, warm_needs
from .description import Wanted
from .pipeline import WarmPipeline
from .progress import SourceProgress
from .running import RunningWarms
from .warmed import Warmed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craftcache.cache.manifest import Manifest
    from craftcache.dependencies import Dependency
    from craftcache.locked import LockedRevision
    from craftcache.sources import RemoteSource, Selection
    from craftcache.wire import Progress
    from craftcached.store.owner import OwnerCache
    from craftcached.store.store import Store

    from .acquire import FileAcquirer
    from .allow import FetchPolicy
    from .description import FetchedSource
    from .inspections import CheckpointInspections
    from .origins import Origins
    from .pipeline import Admission

__all__ = ["Warmer"]


class Warmer:
    """Makes sources present, verified and published; one instance a daemon.

    It has no state of its own beside the running warms and the policy, and holds no lock.

    Args:
        store: The store that sources are published in.
        origins: The origin of each source.
        acquirer: Acquires the files of a description.
        inspections: Has checkpoints inspected.
        policy: Which sources this node may fetch.
        admission: The step between description and acquisition.
        owner: Another daemon's cache that is served from as well; None for none.
        events: Told of the beginning and the end of each warm.

    Attributes:
        policy: Which sources this node may fetch.
        running: The running warms.
    """

    def __init__(
        self,
        *,
        store: Store,
        origins: Origins,
        acquirer: FileAcquirer,
        inspections: CheckpointInspections,
        policy: FetchPolicy,
        admission: Admission,
        owner: OwnerCache | None = None,
        events: Events | None = None,
    ) -> None:
        self.policy = policy
        self.running = RunningWarms(events or Events())
        self._store = store
        self._origins = origins
        self._acquirer = acquirer
        self._inspections = inspections
        self._owner = owner
        self._pipeline = WarmPipeline(
            store=store,
            origins=origins,
            acquirer=acquirer,
            policy=policy,
            admission=admission,
        )

    def check_allowed(self, source: RemoteSource) -> None:
        """Raise PolicyDenied unless this node may fetch ``source``; tells of it as a failure."""
        try:
            self.policy.check(source)
        except PolicyDenied as error:
            self.running.tell_failed(source, error, 0.0)
            raise

    async def warm(
        self,
        source: FetchedSource,
        filenames: Sequence[str] = (),
        *,
        refresh: bool,
        priority: Priority,
        report: Callable[[Progress], None],
        selection: Selection = NO_SELECTION,
        lock: LockedRevision | None = None,
        for_uid: int | None = None,
        with_needs: bool = False,
    ) -> Warmed:
        """Make ``filenames`` of ``source`` present; returns once they are published.

        Args:
            source: The source that the user named.
            filenames: Names of its files; none means an export's pair, or a URL's one file.
            refresh: Whether the origin is asked for a newer revision. If not, the revision that
                was warmed last is used, and the origin is asked only for missing files.
            priority: Which fetches go first when connections are scarce.
            report: Called with progress; must not block.
            selection: Patterns of the files, in place of names.
            lock: The revision and files that are wanted, in place of names and patterns.
            for_uid: User whose budget it counts towards, unless another asked before; None for
                nobody's.
            with_needs: Whether the caller brings what it needs after it, so that there must be
                room for that too.

        Raises:
            CraftcacheError: Any of the tree but those of loading.
        """
        wanted = replace(
            Wanted.of(source, filenames, selection, lock, refresh=refresh),
            for_uid=for_uid,
            with_needs=with_needs,
        )
        # A hit asks no origin, so it is answered whatever the settings allow now.
        if (manifest := await self._published(wanted, report)) is not None:
            # Somebody asks for it by name: it stays, also when no model depends on it any more.
            if not (manifest.is_by_name or wanted.as_need):
                await self._store.publisher.mark_asked_for(source)
            return Warmed(manifest, 0, manifest.size)
        self.check_allowed(source)
        with contextlib.ExitStack() as stack:
            # Also hurries a background warm of the same source that this request joins.
            if priority is Priority.WAITED_FOR:
                stack.enter_context(self._acquirer.waited_for(source))
            return await self.running.share(
                (source, frozenset(wanted.filenames), refresh, with_needs, selection, lock),
                source,
                lambda progress: self._pipeline.warm_chosen(wanted, progress),
                report,
            )

    async def mend(
        self,
        source: FetchedSource,
        filenames: Sequence[str],
        *,
        as_need: bool,
        report: Callable[[Progress], None],
    ) -> None:
        """Make files of a published source, and their indexes, what they were; see warm.

        Args:
            source: The source.
            filenames: Names of its files.
            as_need: Whether it is cached as a dependency only, and stays so.
            report: Called with progress; must not block.
        """
        if not as_need:
            await self.warm(
                source, filenames, refresh=False, priority=Priority.BACKGROUND, report=report
            )
            return
        names = wanted_files(source, filenames)
        if await self._store.recheck(source, names) is not None:
            return
        self.check_allowed(source)
        wanted = Wanted(source, names, refresh=False, as_need=True)
        await self.running.share(
            (source, frozenset(names), "mend"),
            source,
            lambda progress: self._pipeline.warm(wanted, progress),
            report,
        )

    async def publish_superseded(self, source: HubSource, filenames: Sequence[str]) -> bool:
        """Publish a superseded revision, as one, of what is in the cache; asks no origin.

        Args:
            source: The revision, by its commit.
            filenames: Names of its files.

        Returns:
            Whether all of them are there.
        """
        wanted = Wanted(source, wanted_files(source, filenames), refresh=False)
        progress = SourceProgress(source, lambda _: None)
        files = await self._acquirer.at_hand(wanted, source.revision, progress, inspected=False)
        if files is None:
            return False
        await self._pipeline.publish(files, None, wanted)
        await self._store.publisher.mark_superseded(source)
        return True

    async def warm_needs(
        self,
        manifest: Manifest,
        *,
        report: Callable[[Progress], None],
        for_uid: int | None = None,
    ) -> list[WarmedDependency]:
        """Warm the dependencies of a published model; see dependencies.warm_needs."""
        return await warm_needs(manifest, lambda need: self._warm_need(need, report, for_uid))

    async def recheck(
        self,
        source: RemoteSource,
        names: Sequence[str],
        report: Callable[[Progress], None],
        *,
        is_asked_by_name: bool = True,
    ) -> Manifest | None:
        """The manifest of a source if all ``names`` are verified and inspected; None if not.

        Files that were touched since they were verified are hashed again. An index is missing
        where a worker without a daemon published the file, where it came as a dependency, or where
        the index was damaged; the file is then inspected now, before anybody is handed it.

        Args:
            source: The source.
            names: Names of its files.
            report: Called with progress; must not block.
            is_asked_by_name: Whether the files were asked for by their own names; see
                CheckpointInspections.inspect.

        Raises:
            UnsafeCheckpoint, NotACheckpoint: One of the files must not be served.
        """
        await self._follow_owner(source)
        manifest = await self._store.recheck(source, names)
        for record in (manifest.select(source, names) if manifest else None) or ():
            progress = SourceProgress(source, report)
            await self._inspections.inspect_published(
                record, progress, is_asked_by_name=is_asked_by_name
            )
        return manifest

    async def _published(
        self, wanted: Wanted, report: Callable[[Progress], None]
    ) -> Manifest | None:
        """What is published, if that is all that is wanted and no origin need be asked."""
        source, known = wanted.source, self._store.trusted(wanted.source)
        names = wanted.filenames
        if wanted.lock is not None:
            if known is None or not known.is_locked_by(wanted.lock):
                return None
        elif wanted.selection:
            is_fixed = isinstance(source, HubSource) and source.is_pinned
            if known is None or wanted.selection not in known.selections:
                return None
            if wanted.refresh and not is_fixed:
                return None
            listing = (record.filename for record in known.files)
            names = wanted.selection.choose(listing, source=source.shown)
        elif wanted.refresh:
            return None
        return await self.recheck(source, names, report, is_asked_by_name=bool(wanted.named))

    async def _warm_need(
        self, need: Dependency, report: Callable[[Progress], None], for_uid: int | None
    ) -> WarmedDependency:
        """Warm a dependency at its newest revision.

        Raises:
            CraftcacheError: As for warm; Unavailable and Offline only if it is not cached.
        """
        source = need.parsed
        await self._follow_owner(source)
        known = self._store.needed(need)
        # A dependency's URL has its hash in its name, so there is never a newer version of it.
        if known is not None and isinstance(source, UrlSource):
            return WarmedDependency(known)
        self.check_allowed(source)

        async def work(progress: SourceProgress) -> Warmed:
            names = need.filenames
            # Which files are needed depends on which the source has: only its origin knows.
            if not need.is_fixed:
                names = need.choose(await self._origins.of(source).filenames())
            files = wanted_files(source, names)
            wanted = Wanted(source, files, refresh=True, as_need=True, for_uid=for_uid)
            return await self._pipeline.warm(wanted, progress)

        try:
            warmed = await self.running.share((source, need), source, work, report)
        except (Unavailable, Offline) as error:
            # A cached revision is enough to load the model. Looked up again: it may be gone by now.
            known = self._store.needed(need)
            if known is None:
                raise
            return WarmedDependency(known, not_refreshed=error)
        return WarmedDependency(warmed.manifest, warmed.previous)

    async def _follow_owner(self, source: RemoteSource) -> None:
        """Take over what another daemon's cache has of ``source``, where one is followed."""
        if self._owner is not None:
            await self._owner.follow(source)
