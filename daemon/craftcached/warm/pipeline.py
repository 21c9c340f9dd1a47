"""The pipeline of a warm, the same for whatever origin the source has.

    wanted files -> described -> admitted -> verified -> published

Each step is a function from values to values, see description. Which origin a source has is known
to the first of them alone, and how its files are named in the cache to the one that publishes. The
files stay in staging until all of them are verified, so that a request that fails leaves nothing
behind.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from craftcache.errors import CraftcacheError
from craftcache.sources import HubSource, UrlSource, shown_url, wanted_files

from .locked import check_locked, hold_to_lock
from .tasks import all_results
from .warmed import Warmed

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.cache.manifest import Manifest
    from craftcache.dependencies import Dependency
    from craftcached.fetch.disk_space import ModelClaim
    from craftcached.store.store import Store

    from .acquire import FileAcquirer
    from .allow import FetchPolicy
    from .description import DescribedFile, Description, VerifiedFiles, Wanted
    from .origins import Origins
    from .progress import SourceProgress

__all__ = ["Admission", "WarmPipeline"]

Admission: TypeAlias = (
    "Callable[[Description], contextlib.AbstractAsyncContextManager[ModelClaim | None]]"
)
"""Makes sure of room for described files before the first byte of them is fetched, and keeps it
until they are published or given up; raises StorageFull where there can be none. The context's
value, if any, is settled as soon as they are published: from then on they count as that."""


class WarmPipeline:
    """Does one warm; has no state of its own. The locks of the files are taken in the order that
    FileAcquirer states.

    Args:
        store: The store that sources are published in.
        origins: The origin of each source.
        acquirer: Acquires the files of a description.
        policy: Which sources this node may fetch.
        admission: The step between description and acquisition.
    """

    def __init__(
        self,
        *,
        store: Store,
        origins: Origins,
        acquirer: FileAcquirer,
        policy: FetchPolicy,
        admission: Admission,
    ) -> None:
        self._store = store
        self._origins = origins
        self._acquirer = acquirer
        self._policy = policy
        self._admission = admission

    async def warm_chosen(self, wanted: Wanted, progress: SourceProgress) -> Warmed:
        """Find out which files of which commit are meant, where only the Hub knows, and warm them.

        From then on the commit is used: all files are of one, even if the revision moves meanwhile.
        """
        source = wanted.source
        if not wanted.selection or not isinstance(source, HubSource):
            return await self.warm(wanted, progress)
        known = await self._store.believed(source)
        revision = known.revision if known and not wanted.refresh else source.revision
        listing = await self._origins.of(source).listing(revision)
        chosen = replace(
            wanted,
            filenames=wanted.selection.choose(listing.filenames, source=source.shown),
            commit=listing.commit,
            is_named=revision == source.revision,
        )
        return await self.warm(chosen, progress)

    async def warm(self, wanted: Wanted, progress: SourceProgress) -> Warmed:
        """Describe, admit, acquire and verify, publish."""
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
                needed = await self._needed_files(known) if wanted.with_needs and known else ()
                description = await self._for_overlay(description, known, progress)
                description = replace(description, for_uid=wanted.for_uid, needed_files=needed)
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
            manifest = await self.publish(files, known, wanted)
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
            previous=known if is_less_needed else None,
        )

    async def _needed_files(self, known: Manifest) -> tuple[DescribedFile, ...]:
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
            self._policy.check(source)
            origin = self._origins.of(source)
            names = need.filenames if need.is_fixed else need.choose(await origin.filenames())
            files = wanted_files(source, names)
            return (await origin.describe(files, known=None, refresh=True)).files
        except CraftcacheError:  # raised again when the need is brought
            return ()

    async def publish(
        self, files: VerifiedFiles, known: Manifest | None, wanted: Wanted
    ) -> Manifest:
        """Publish verified files; the manifest, written last, makes them a model."""
        if known is not None and self._is_served_in_place(files, known):
            if known.needed_only and not wanted.as_need:
                await self._store.publisher.mark_asked_for(files.source)
            return self._store.trusted(files.source) or known
        match files.source:
            # In huggingface_hub's tree, so that unmodified programs find them as well.
            case HubSource() as source:
                return await self._store.publisher.publish_hub(
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
                return await self._store.publisher.publish_url(
                    source, shown, as_need=wanted.as_need
                )

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
