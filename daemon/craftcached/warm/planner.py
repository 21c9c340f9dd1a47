"""What a warm would take: asks origins what their files are, and fetches none of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from craftcache.checkpoint import tensor_bytes
from craftcache.checkpoint.filenames import is_checkpoint
from craftcache.daemon.planning import UNKNOWN_DTYPE, PlannedFile, PlannedModel
from craftcache.errors import InvalidSource
from craftcache.sources import HubSource, UrlSource, wanted_files

from .description import Wanted
from .locked import hold_to_lock
from .tasks import all_results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.dependencies import Dependency
    from craftcache.sources import RemoteSource
    from craftcache.wire import Warm
    from craftcached.store.store import Store

    from .description import DescribedFile, Description, FetchedSource
    from .origins import Origins

__all__ = ["Planner"]


class Planner:
    """Plans warms; has no state, and changes nothing.

    Args:
        store: The published models.
        origins: The origin of each source.
        check_allowed: Raises PolicyDenied for a source that this node may not fetch.
    """

    def __init__(
        self, *, store: Store, origins: Origins, check_allowed: Callable[[RemoteSource], None]
    ) -> None:
        self._store = store
        self._origins = origins
        self._check_allowed = check_allowed

    async def plan(self, warms: Sequence[Warm]) -> list[PlannedModel]:
        """The models that these warms would make present, what they need among them, each once.

        Raises:
            CraftcacheError: Any that the warm of one of them would raise before its first byte.
        """
        here = await asyncio.to_thread(_known_files, self._store)
        models = await all_results(self._named(warm, here) for warm in warms)
        planned = {model.source: model for model in models}
        wanted = [
            need
            for warm in warms
            if not (warm.options.pair_only or warm.options.lock)
            for need in self._needs(warm.source)
        ]
        while wanted:
            need = wanted.pop(0)
            if need.parsed.shown not in planned:
                planned[need.parsed.shown] = await self._needed(need, here)
                wanted += self._needs(need.parsed)
        return list(planned.values())

    async def _named(self, warm: Warm, here: _KnownFiles) -> PlannedModel:
        source, options = warm.source, warm.options
        if not isinstance(source, HubSource | UrlSource):
            raise InvalidSource(
                "a watch fetches nothing",
                source=source.shown,
                hint="Name Hub ids and URLs",
            )
        wanted = Wanted.of(
            source,
            options.filenames,
            options.selection,
            options.lock,
            refresh=options.refresh,
        )
        known = self._store.trusted(source)
        are_needs_known = options.pair_only or options.lock is not None or known is not None
        if known is not None and (records := _published(known, wanted)) is not None:
            files = await here.of_records(records)
            return PlannedModel(source.shown, known.revision, None, files, are_needs_known)
        self._check_allowed(source)
        description = await self._describe(wanted, known)
        files = await self._files(description, here)
        return PlannedModel(source.shown, description.commit, None, files, are_needs_known)

    async def _needed(self, need: Dependency, here: _KnownFiles) -> PlannedModel:
        source, known = need.parsed, self._store.needed(need)
        if known is not None:
            files = await here.of_records(known.files)
            return PlannedModel(source.shown, known.revision, need.why, files, True)
        self._check_allowed(source)
        names = need.filenames
        if not need.is_fixed:
            names = need.choose(await self._origins.of(source).filenames())
        wanted = Wanted(source, wanted_files(source, names), refresh=True)
        description = await self._describe(wanted, None)
        files = await self._files(description, here)
        return PlannedModel(source.shown, description.commit, need.why, files, True)

    def _needs(self, source: RemoteSource) -> tuple[Dependency, ...]:
        manifest = self._store.trusted(source)
        return manifest.needs if manifest is not None else ()

    async def _describe(self, wanted: Wanted, known: Manifest | None) -> Description:
        source, origin = wanted.source, self._origins.of(wanted.source)
        if wanted.selection:
            named = source.revision if isinstance(source, HubSource) else ""
            revision = known.revision if known and not wanted.refresh else named
            listing = await origin.listing(revision)
            names = wanted.selection.choose(listing.filenames, source=source.shown)
            wanted = replace(wanted, filenames=names, commit=listing.commit)
        description = await origin.describe(
            wanted.filenames, known=known, refresh=wanted.refresh, commit=wanted.commit
        )
        return description if wanted.lock is None else hold_to_lock(description, wanted.lock)

    async def _files(self, description: Description, here: _KnownFiles) -> tuple[PlannedFile, ...]:
        sizes = await all_results(
            self._size(description.source, file) for file in description.files
        )
        described = zip(description.files, sizes, strict=True)
        return await asyncio.to_thread(
            lambda: tuple(here.of_described(file, size) for file, size in described)
        )

    async def _size(self, source: FetchedSource, file: DescribedFile) -> int | None:
        """A file's size; a URL's is asked for, as its origin promises none."""
        if file.current is not None:
            return file.current.size
        if file.promise.size is None and isinstance(source, UrlSource):
            return await self._origins.size(source, file.filename)
        return file.promise.size


@dataclass(frozen=True, slots=True)
class _KnownFiles:
    """The files of the cache, and what is known of their tensors; read once for a plan."""

    store: Store
    records: Mapping[str, FileRecord]

    async def of_records(self, records: Iterable[FileRecord]) -> tuple[PlannedFile, ...]:
        """Published files."""
        return await asyncio.to_thread(lambda: tuple(map(self._of_record, records)))

    def _of_record(self, record: FileRecord) -> PlannedFile:
        is_here = self.store.cache.is_intact(record)
        tensors = self._tensors(record.filename, record.size, record if is_here else None)
        return PlannedFile(record.filename, record.size, is_here, tensors)

    def of_described(self, file: DescribedFile, size: int | None) -> PlannedFile:
        """A file as its origin describes it, which may be here under other names."""
        digest = file.promise.digest
        record = file.current or (self.records.get(digest.hex) if digest else None)
        is_here = record is not None and self.store.cache.is_intact(record)
        tensors = self._tensors(file.filename, size, record if is_here else None)
        return PlannedFile(file.filename, size, is_here or self._is_in_tree(file), tensors)

    def _is_in_tree(self, file: DescribedFile) -> bool:
        """Whether huggingface_hub has left the blob, which will be hashed instead of fetched."""
        if file.blob is None:
            return False
        path = self.store.cache.hub_tree(file.blob.source.repo_id).blob(file.blob.etag)
        try:
            return path.stat().st_size == file.promise.size
        except OSError:
            return False

    def _tensors(
        self, filename: str, size: int | None, record: FileRecord | None
    ) -> dict[str, int]:
        """Bytes of a file's tensors by dtype, from its index or header, else by its size."""
        cache, found = self.store.cache, None
        if filename.lower().endswith(".safetensors"):
            if record is not None:
                with cache.path(record).open("rb") as content:
                    found = tensor_bytes.of_safetensors(content)
        elif not is_checkpoint(filename):
            return {}
        elif record is not None and (index := cache.index(record)) is not None:
            found = tensor_bytes.of_index(index) if index.reason is None else None
        return {UNKNOWN_DTYPE: size or 0} if found is None else found


def _known_files(store: Store) -> _KnownFiles:
    records = {
        record.sha256: record
        for _, manifest in store.cache.published(ours=True)
        for record in manifest.files
    }
    return _KnownFiles(store, records)


def _published(known: Manifest, wanted: Wanted) -> Iterable[FileRecord] | None:
    """The published files, where they are all that is wanted and no origin would be asked."""
    if wanted.lock is not None:
        return known.files if known.is_locked_by(wanted.lock) else None
    if wanted.refresh:
        return None
    if wanted.selection:
        if wanted.selection not in known.selections:
            return None
        return [record for record in known.files if wanted.selection.has(record.filename)]
    return known.select(wanted.source, wanted.filenames)
