"""The verified states of one watched directory, numbered, and which of them is served.

    watch:NAME@3, watch:NAME@2 ...   each has a manifest of its own, and so its blobs are held
    watch:NAME                       the manifest of the one that is served

What exists is decided by the files in the cache; only the numbers are kept in memory.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from craftcache.cache.manifest import Watched, manifest_key
from craftcache.errors import NotFound
from craftcache.sources import FILENAMES, WatchSource, parse
from craftcached.in_use import is_in_use

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from craftcache.cache.manifest import Manifest
    from craftcache.cache.publish import Verified
    from craftcached.store.store import Store

    from .snapshot import Pair

__all__ = ["Generations", "numbers_by_watch", "directories_by_watch", "pair_of"]


class Generations:
    """The generations of one watch.

    Args:
        store: The store that they are published in.
        name: Name of the watch.
        numbers: Numbers of the published generations.
    """

    def __init__(self, store: Store, name: str, numbers: Iterable[int]) -> None:
        self._store = store
        self._name = name
        self._numbers = set(numbers)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of all published generations, oldest first."""
        return tuple(sorted(number for number in self._numbers if self._manifest(number)))

    @property
    def served(self) -> Manifest | None:
        """The generation that a load of the watch gets."""
        return self._store.manifest(WatchSource(self._name))

    @property
    def newest(self) -> Manifest | None:
        """The generation that was published last."""
        numbers = self.numbers
        return self._manifest(numbers[-1]) if numbers else None

    async def add(self, directory: str, files: Mapping[str, Verified]) -> Manifest:
        """Publish a new generation, which is not served yet."""
        served = self.served
        last = served.watched.generation if served and served.watched else 0
        number = max(last, *self._numbers, 0) + 1
        manifest = await self._store.publisher.publish_generation(
            self._name, Watched(directory, number), files
        )
        self._numbers.add(number)
        return manifest

    async def serve(self, number: int) -> Manifest:
        """Serve this generation from now on.

        Raises:
            NotFound: It is not there any more, or never was.
        """
        manifest = await self._store.believed(WatchSource(self._name, number))
        if manifest is None:
            there = ", ".join(map(str, self.numbers)) or "none"
            raise NotFound(
                f"there is no generation {number}",
                source=f"watch:{self._name}",
                hint=f"These are there: {there}",
            )
        return await self._store.publisher.serve_generation(self._name, manifest)

    async def prune(self, keep: int) -> None:
        """Remove generations beyond the newest and ``keep`` more, unless served or in use."""
        served = self.served
        kept = served.watched.generation if served and served.watched else None
        for number in self.numbers[: -keep - 1]:
            manifest = self._manifest(number)
            if number == kept or manifest is None:
                continue
            if not await asyncio.to_thread(self._is_in_use, manifest):
                await self._remove(WatchSource(self._name, number))
                self._numbers.discard(number)

    async def remove_all(self) -> int:
        """Remove all generations, the served one first; returns the bytes freed."""
        freed = await self._remove(WatchSource(self._name))
        for number in self.numbers:
            freed += await self._remove(WatchSource(self._name, number))
        self._numbers.clear()
        return freed

    def _manifest(self, number: int) -> Manifest | None:
        return self._store.manifest(WatchSource(self._name, number))

    async def _remove(self, source: WatchSource) -> int:
        removed = await self._store.remove(manifest_key(source))
        return removed.freed

    def _is_in_use(self, manifest: Manifest) -> bool:
        try:
            return any(is_in_use(self._store.cache.path(record)) for record in manifest.files)
        except OSError:
            return False


def numbers_by_watch(manifests: Iterable[Manifest]) -> dict[str, set[int]]:
    """The numbers of all generations that are published, by the name of their watch."""
    numbers: dict[str, set[int]] = {}
    for manifest in manifests:
        source = parse(manifest.source) if manifest.watched else None
        if isinstance(source, WatchSource) and source.generation is not None:
            numbers.setdefault(source.name, set()).add(source.generation)
    return numbers


def directories_by_watch(manifests: Iterable[Manifest]) -> dict[str, str]:
    """The directory that each watch's served generation comes from, by the watch's name."""
    return {
        manifest.source.removeprefix("watch:"): manifest.watched.directory
        for manifest in manifests
        if manifest.watched and "@" not in manifest.source
    }


def pair_of(manifest: Manifest | None, directory: str) -> Pair | None:
    """The pair in ``directory`` that a generation was made of, if it was made there."""
    if manifest is None or manifest.watched is None or manifest.watched.directory != directory:
        return None
    records = [manifest.file(name) for name in FILENAMES.values()]
    return tuple((r.filename, r.etag or "") for r in records if r is not None)
