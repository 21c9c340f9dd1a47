"""Warming a source: one pipeline for whatever origin it has.

    wanted files -> described -> admitted -> verified -> published -> dependencies

Each step is a function from values to values, see description. Which origin a source has is known
to the first of them alone, and how its files are named in the cache to the one that publishes.

A source that is asked for twice at once is warmed once. Its files stay in staging until all of
them are verified, so that a request that fails leaves nothing behind. What a model needs is warmed
after it was published, see dependencies.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from craftcache.errors import CraftcacheError, Offline, PolicyDenied, Unavailable
from craftcache.sources import NO_SELECTION, HubSource, UrlSource, shown_url, wanted_files
from craftcached.events import Events
from craftcached.fetch import Priority
from craftcached.singleflight import SingleFlight

from .allow import is_allowed, is_denied
from .dependencies import WarmedDependency, warm_needs
from .description import Wanted
from .locked import check_locked, hold_to_lock
from .pace import WarmPace
from .progress import SourceProgress
from .tasks import all_results

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable, Sequence

    from craftcache.cache.manifest import Manifest
    from craftcache.dependencies import Dependency
    from craftcache.locked import LockedRevision
    from craftcache.sources import RemoteSource, Selection
    from craftcache.wire import Coming, Progress
    from craftcached.fetch.disk_space import ModelClaim
    from craftcached.store.owner import OwnerCache
    from craftcached.store.store import Store

    from .acquire import FileAcquirer
    from .description import DescribedFile, Description, FetchedSource, VerifiedFiles
    from .origins import Origins

__all__ = ["Admission", "Warmer", "Warmed"]

Admission: TypeAlias = (
    "Callable[[Description], contextlib.AbstractAsyncContextManager[ModelClaim | None]]"
)
"""Makes sure of room for described files before the first byte of them is fetched, and keeps it
until they are published or given up; raises StorageFull where there can be none. The context's
value, if any, is settled as soon as they are published: from then on they count as that."""


@dataclass(frozen=True, slots=True)
class Warmed:
    """The result of a warm.

    Attributes:
        manifest: The manifest of the source as published now.
        bytes_fetched: Bytes downloaded for the source's own files, by this request or one that it
            shared the work with.
        bytes_reused: Bytes of its files that were on this node before, in whatever form.
        resident_bytes: Bytes of the files asked for that are in memory; None where that was not
            asked for, or is not known.
        superseded: The manifest before this warm, if it has dependencies that this one lacks;
            else None.
        not_refreshed: Names of the dependencies that are cached, but whose origin could not be
            asked for a newer revision.
        held_until: Time until which it is held, in seconds since the epoch, or None.
    """

    manifest: Manifest
    bytes_fetched: int
    bytes_reused: int
    resident_bytes: int | None = None
    superseded: Manifest | None = None
    not_refreshed: tuple[str, ...] = ()
    held_until: float | None = None


class Warmer:
    """Makes sources present, verified and published; one instance a daemon.

    The mutable state: the running warms, by source and options, how far each has come, and the
    patterns of sources that may be fetched. All change on the event loop between awaits. A warm
    holds no lock itself; the locks of its files are taken in the order that FileAcquirer states.

    Args:
        store: The store that sources are published in.
        origins: The origin of each source.
        acquirer: Acquires the files of a description.
        allow: Patterns of sources that this node may fetch.
        admission: The step between description and acquisition.
        deny: Patterns of sources that it may not fetch, though ``allow`` has them.
        owner: Another daemon's cache that is served from as well; None for none.
        events: Told of the beginning and the end of each warm.
    """

    def __init__(
        self,
        *,
        store: Store,
        origins: Origins,
        acquirer: FileAcquirer,
        allow: tuple[str, ...],
        admission: Admission,
        deny: tuple[str, ...] = (),
        owner: OwnerCache | None = None,
        events: Events | None = None,
    ) -> None:
        self._store = store
        self._origins = origins
        self._acquirer = acquirer
        self._allow = allow
        self._deny = deny
        self._admission = admission
        self._events = events or Events()
        self._paces: set[WarmPace] = set()
        self._owner = owner
        self._requests: SingleFlight[Warmed, Progress] = SingleFlight()

    @property
    def running(self) -> int:
        """Number of different warms that are running."""
        return len(self._requests)

    def progress(self) -> list[Progress]:
        """The last progress of each running warm."""
        return self._requests.latest()

    def coming(self) -> list[Coming]:
        """What each running warm brings, how fast and for how much longer; oldest first."""
        return [pace.coming() for pace in sorted(self._paces, key=lambda pace: pace.began)]

    def allow(self, patterns: tuple[str, ...], *, deny: tuple[str, ...] = ()) -> None:
        """Use these patterns from now on; running warms are not stopped."""
        self._allow = patterns
        self._deny = deny

    def check_allowed(self, source: RemoteSource) -> None:
        """Raise PolicyDenied unless this node may fetch ``source``; tells of it as a failure."""
        try:
            self.check_may_fetch(source)
        except PolicyDenied as error:
            self._tell_failed(source, error, 0.0)
            raise

    def check_may_fetch(self, source: RemoteSource) -> None:
        """Raise PolicyDenied unless this node may fetch ``source``; no warm fails by that."""
        if any(is_denied(source, pattern) for pattern in self._deny):
            raise PolicyDenied(
                "this node is told not to fetch it",
                source=source.shown,
                hint="The administrator lists what may not be fetched in the setting deny",
            )
        if not any(is_allowed(source, pattern) for pattern in self._allow):
            raise PolicyDenied(
                "this node does not fetch it",
                source=source.shown,
                hint="The administrator lists what may be fetched in the setting allow",
            )

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
                await self._store.mark_asked_for(source)
            return Warmed(manifest, 0, manifest.size)
        self.check_allowed(source)
        with contextlib.ExitStack() as stack:
            # Also hurries a background warm of the same source that this request joins.
            if priority is Priority.WAITED_FOR:
                stack.enter_context(self._acquirer.waited_for(source))
            return await self._shared(
                (source, frozenset(wanted.filenames), refresh, with_needs, selection, lock),
                source,
                lambda progress: self._warm_wanted(wanted, progress),
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
        await self._shared(
            (source, frozenset(names), "mend"),
            source,
            lambda progress: self._warm(wanted, progress),
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
        await self._publish(files, None, wanted)
        await self._store.mark_superseded(source)
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
                FileAcquirer.inspect.

        Raises:
            UnsafeCheckpoint, NotACheckpoint: One of the files must not be served.
        """
        await self._follow_owner(source)
        manifest = await self._store.recheck(source, names)
        for record in (manifest.select(source, names) if manifest else None) or ():
            progress = SourceProgress(source, report)
            await self._acquirer.inspect(record, progress, is_asked_by_name=is_asked_by_name)
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
            return await self._warm(wanted, progress)

        try:
            warmed = await self._shared((source, need), source, work, report)
        except (Unavailable, Offline) as error:
            # A cached revision is enough to load the model. Looked up again: it may be gone by now.
            known = self._store.needed(need)
            if known is None:
                raise
            return WarmedDependency(known, not_refreshed=error)
        return WarmedDependency(warmed.manifest, warmed.superseded)

    async def _shared(
        self,
        key: Hashable,
        source: FetchedSource,
        work: Callable[[SourceProgress], Coroutine[object, object, Warmed]],
        report: Callable[[Progress], None],
    ) -> Warmed:
        """Do ``work`` once for all requests with the same ``key``; errors name ``source``."""

        async def run(tell: Callable[[Progress], None]) -> Warmed:
            pace = WarmPace(source.shown)
            self._paces.add(pace)
            try:
                progress = SourceProgress(source, tell).heard_by(pace.heard)
                return await self._told(source, work(progress))
            finally:
                self._paces.discard(pace)

        try:
            async with self._requests.join(key, run, report) as warmed:
                return warmed
        except CraftcacheError as error:  # shared with other requests, so each raises a copy
            raise error.about(source.shown) from error

    async def _warm_wanted(self, wanted: Wanted, progress: SourceProgress) -> Warmed:
        """Find out which files of which commit are meant, where only the Hub knows, and warm them.

        From then on the commit is used: all files are of one, even if the revision moves meanwhile.
        """
        source = wanted.source
        if not wanted.selection or not isinstance(source, HubSource):
            return await self._warm(wanted, progress)
        known = await self._store.believed(source)
        revision = known.revision if known and not wanted.refresh else source.revision
        listing = await self._origins.of(source).listing(revision)
        chosen = replace(
            wanted,
            filenames=wanted.selection.choose(listing.filenames, source=source.shown),
            commit=listing.commit,
            is_named=revision == source.revision,
        )
        return await self._warm(chosen, progress)

    async def _warm(self, wanted: Wanted, progress: SourceProgress) -> Warmed:
        """The pipeline: describe, admit, acquire and verify, publish."""
        known = await self._store.believed(wanted.source)
        # What is here only as a dependency is handed to no worker, and so need not be inspected
        # until somebody asks for it by name.
        inspected = not wanted.as_need or (known is not None and not known.needed_only)
        commit = wanted.commit or _known_commit(wanted, known)
        claim: ModelClaim | None = None
        claimed: frozenset[str] = frozenset()
        async with contextlib.AsyncExitStack() as held:
            # All files may be here, though not published under this name: then no origin is asked,
            # and the warm works offline.
            files = await self._acquirer.at_hand(wanted, commit, progress, inspected=inspected)
            # A file is missing, or only the origin knows the commit: ask it what the files are.
            if files is None:
                description = await self._origins.of(wanted.source).describe(
                    wanted.filenames, known=known, refresh=wanted.refresh, commit=wanted.commit
                )
                if wanted.lock is not None:
                    description = hold_to_lock(description, wanted.lock)
                # Room is made sure of before the first byte comes, and kept until publication.
                closure = await self._closure(known) if wanted.with_needs and known else ()
                description = await self._for_overlay(description, known, progress)
                description = replace(description, for_uid=wanted.for_uid, closure=closure)
                admission = self._admission(description)
                claim = await held.enter_async_context(admission)
                claimed = frozenset(file.remote.key for file in description.files)
                # The files, and the locks of their blobs, are held until publication too.
                files = await held.enter_async_context(
                    self._acquirer.hold(
                        description, progress, inspected=inspected, named=wanted.named
                    )
                )
            if wanted.lock is not None:
                check_locked(files, wanted.lock)
            progress.tell(None, 0, None, "publishing")
            # Inside the context: a program that waits for a blob's lock then finds it published.
            manifest = await self._publish(files, known, wanted)
            if claim is not None:
                inodes = frozenset(record.inode for record in manifest.files)
                claim.settle(inodes, claimed)
        progress.tell(None, manifest.size, manifest.size, "done")
        # The caller removes dependencies that the new revision dropped; see Warming.warm.
        is_less_needed = known is not None and not known.needed_keys <= manifest.needed_keys
        return Warmed(
            manifest,
            files.bytes_fetched,
            files.bytes_reused,
            superseded=known if is_less_needed else None,
        )

    async def _told(self, source: FetchedSource, work: Coroutine[object, object, Warmed]) -> Warmed:
        """Do ``work``; tell of its beginning and its end, once for all requests that share it."""
        started = time.monotonic()
        self._events.tell("warm_started", source=source.shown)
        try:
            warmed = await work
        except CraftcacheError as error:
            self._tell_failed(source, error, time.monotonic() - started)
            raise
        except asyncio.CancelledError:
            seconds = time.monotonic() - started
            self._events.tell("warm_cancelled", source=source.shown, seconds=seconds)
            raise
        self._events.tell(
            "warmed",
            source=source.shown,
            revision=warmed.manifest.revision,
            bytes_fetched=warmed.bytes_fetched,
            bytes_reused=warmed.bytes_reused,
            seconds=time.monotonic() - started,
        )
        return warmed

    def _tell_failed(self, source: RemoteSource, error: CraftcacheError, seconds: float) -> None:
        self._events.tell(
            "warm_failed",
            source=source.shown,
            code=error.code,
            message=error.message,
            hint=error.hint,
            retryable=error.retryable,
            seconds=seconds,
        )

    async def _closure(self, known: Manifest) -> tuple[DescribedFile, ...]:
        """The files of what a published model needs and that is not cached, as far as known.

        What a model needs is read in its checkpoints, so of one that was never here it is known
        only when it is; then each need is admitted by itself.
        """
        described = await all_results(map(self._described_need, known.needs))
        return tuple(file for files in described for file in files)

    async def _described_need(self, need: Dependency) -> tuple[DescribedFile, ...]:
        try:
            source = need.parsed
            if self._store.needed(need) is not None:
                return ()
            self.check_may_fetch(source)
            origin = self._origins.of(source)
            names = need.filenames if need.is_fixed else need.choose(await origin.filenames())
            files = wanted_files(source, names)
            return (await origin.describe(files, known=None, refresh=True)).files
        except CraftcacheError:  # raised again when the need is brought
            return ()

    async def _follow_owner(self, source: RemoteSource) -> None:
        """Take over what another daemon's cache has of ``source``, where one is followed."""
        if self._owner is not None:
            await self._owner.follow(source)

    async def _publish(
        self, files: VerifiedFiles, known: Manifest | None, wanted: Wanted
    ) -> Manifest:
        """Publish verified files; the manifest, written last, makes them a model."""
        if known is not None and self._is_served_in_place(files, known):
            if known.needed_only and not wanted.as_need:
                await self._store.mark_asked_for(files.source)
            return self._store.trusted(files.source) or known
        match files.source:
            # In huggingface_hub's tree, so that unmodified programs find them as well.
            case HubSource() as source:
                return await self._store.publish_hub(
                    source,
                    files.commit,
                    files.files,
                    files.mirror or self._origins.of(source).shown(files.commit),
                    is_named=files.is_named or wanted.is_named,
                    as_need=wanted.as_need,
                    selection=wanted.selection,
                )
            # By content: no other program has a place for a URL's files that could be shared.
            case UrlSource() as source:
                shown = {
                    name: (verified, shown_url(source.file_url(name)))
                    for name, (verified, _) in files.files.items()
                }
                return await self._store.publish_url(source, shown, as_need=wanted.as_need)

    async def _for_overlay(
        self, description: Description, known: Manifest | None, progress: SourceProgress
    ) -> Description:
        """The description as the overlay of a daemon with ``read_only`` needs it.

        Where all files are in the owner's cache and right, the description stays as it is: they
        are served in place. Otherwise the model is published in the overlay, and no file of the
        owner's counts as current, since each file of the model takes room in the overlay.
        """
        is_owners = self._store.cache.is_owners
        owners = [file.current for file in description.files if file.current is not None]
        owners = [record for record in owners if is_owners(record)]
        if not owners:
            return description
        is_same = known is not None and description.commit in ("", known.revision)
        if is_same and len(owners) == len(description.files):
            progress.tell(None, 0, None, "verifying")
            if all([await self._store.verify(record) for record in owners]):
                return description
        files = (
            replace(file, current=None) if file.current in owners else file
            for file in description.files
        )
        return replace(description, files=tuple(files))

    def _is_served_in_place(self, files: VerifiedFiles, known: Manifest) -> bool:
        """Whether all files are those of the owner's cache that ``known`` leads to already."""
        owner = self._store.cache.owner
        return files.commit in ("", known.revision) and all(
            verified.file.path.is_relative_to(owner) for verified, _ in files.files.values()
        )


def _known_commit(wanted: Wanted, known: Manifest | None) -> str:
    """The wanted commit if it is known without asking the origin; empty otherwise."""
    if not isinstance(wanted.source, HubSource):
        return ""
    if known is not None and not wanted.refresh:
        return known.revision
    return wanted.source.revision if wanted.source.is_pinned else ""
