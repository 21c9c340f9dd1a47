"""The survey: all published models, and what kills have left, as the policy sees them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.sources import WatchSource, parse
from craftcached.in_use import is_in_use

from .policy import Blob, EvictionCandidate

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import Manifest
    from craftcached.store.store import Store

    from .holds import Holds
    from .last_use import LastUse
    from .pins import Pins

__all__ = ["LEFT", "Surveyor"]

GRACE_SECONDS = 3600.0
"""Time after its last use in which a blob counts as in use where the kernel cannot say, and after
which no publication that was recorded as under way still is."""

LEFT = "left:"
"""Beginning of the key of what a kill has left of a publication; the name of its record follows."""


class Surveyor:
    """Looks at the published models, and knows why some of them stay.

    The mutable state: how many requests need each model at this moment, by its manifest's key.

    Args:
        store: The published models.
        pins: The models that stay until they are unpinned.
        holds: The models that stay for a while, by users' word.
        uses: The time of each model's last use.
        clock: Returns the time in seconds since the epoch.
    """

    def __init__(
        self,
        *,
        store: Store,
        pins: Pins,
        holds: Holds,
        uses: LastUse,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._pins = pins
        self._holds = holds
        self._uses = uses
        self._clock = clock
        self._needed: Counter[str] = Counter()

    @contextmanager
    def needing(self, key: str) -> Iterator[None]:
        """A context in which the model with that key stays: a request brings it or opens it."""
        self._needed[key] += 1
        try:
            yield
        finally:
            self._needed[key] -= 1
            if not self._needed[key]:
                del self._needed[key]

    async def survey(
        self, *, handover: float = 0.0, spared: Collection[str] = ()
    ) -> list[EvictionCandidate]:
        """All that could be removed, and what protects each from it.

        Args:
            handover: Seconds after their last use in which models stay.
            spared: Keys of models that stay: they were removed and published again since.
        """
        published = await self._store.published()
        current = {key: manifest.revision for key, manifest in published}
        left = [
            (LEFT + name, manifest)
            for name, manifest in await self._store.underway()
            if current.get(name.partition("-")[0]) != manifest.revision
        ]
        last_uses = {
            key: max(self._uses.last(key), manifest.published_at.timestamp())
            for key, manifest in (*published, *left)
        }
        now = self._clock()
        held = {hold.key for hold in self._holds.all()}
        blobs = await asyncio.to_thread(self._look, (*published, *left), last_uses, now)
        models = [
            EvictionCandidate(
                key=key,
                source=manifest.source,
                blobs=blobs[key],
                last_use=last_uses[key],
                is_kept=self.stays_for_long(key, manifest.source)
                or key in held
                or key in self._needed
                or key in spared
                or max(now - last_uses[key], 0.0) < handover,  # the clock may have been set back
                needs=manifest.needed_keys,
                is_needed_only=manifest.needed_only,
                is_superseded=manifest.superseded,
            )
            for key, manifest in published
        ]
        models += [
            EvictionCandidate(
                key=key,
                source=f"{manifest.source.partition('@')[0]}@{manifest.revision}",
                blobs=blobs[key],
                last_use=last_uses[key],
                # A worker may be publishing it by itself at this moment.
                is_kept=key in spared or max(now - last_uses[key], 0.0) < GRACE_SECONDS,
                is_superseded=True,
            )
            for key, manifest in left
            if blobs[key]  # none has come yet, or none is left
        ]
        return models

    def stays_for_long(self, key: str, source: str) -> bool:
        """Whether a model stays by a person's word: it is pinned, or served by a watch."""
        return self._pins.find(key) is not None or _is_served_by_watch(source)

    def reason(self, model: EvictionCandidate, needed: Mapping[str, str]) -> str:
        """Why a model stays, in words.

        Args:
            model: The model.
            needed: A model that needs it, as shown to people, by the needed model's key.
        """
        if self._pins.find(model.key):
            return "pinned"
        if model.key in needed:
            return f"needed by {needed[model.key]}"
        if _is_served_by_watch(model.source):
            return "served by a watch"
        if model.source.startswith("watch:"):
            return "watched"
        if self._holds.until(model.key) is not None:
            return "held"
        if model.key in self._needed:
            return "a request needs it"
        if model.is_kept:
            return "just used"
        if any(blob.in_use for blob in model.blobs):
            return "in use"
        return "others have the same files"

    def _look(
        self,
        published: Iterable[tuple[str, Manifest]],
        last_uses: dict[str, float],
        now: float,
    ) -> dict[str, frozenset[Blob]]:
        """The blobs of each model; each file is examined once, whatever names it has."""
        files: dict[tuple[int, int], _File] = {}
        held: dict[str, list[_File]] = {}
        for key, manifest in published:
            held[key] = []
            for path in _paths(self._store.cache, manifest):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                identity = (status.st_dev, status.st_ino)
                file = files.setdefault(identity, _File(path, status))
                file.last_use = max(file.last_use, last_uses[key])
                held[key].append(file)
        blobs = {id(file): file.blob(now) for file in files.values()}
        return {key: frozenset(blobs[id(file)] for file in held[key]) for key in held}


def _paths(cache: CacheDir, manifest: Manifest) -> Iterator[Path]:
    """Paths of the files of a model."""
    return (cache.path(each) for each in manifest.files if not cache.is_owners(each))


def _is_served_by_watch(source: str) -> bool:
    """Whether it is a watch's served generation, which no origin has any more."""
    parsed = parse(source)
    return isinstance(parsed, WatchSource) and parsed.generation is None


@dataclass(slots=True)
class _File:
    """A file of one or more models, and the time of the last use of any of them."""

    path: Path
    status: os.stat_result
    last_use: float = 0.0

    def blob(self, now: float) -> Blob:
        try:
            in_use = is_in_use(self.path)
        except OSError:  # removed meanwhile, or not readable for the daemon
            in_use = None
        if in_use is None:
            in_use = now - self.last_use < GRACE_SECONDS
        return Blob(self.status.st_dev, self.status.st_ino, self.status.st_size, in_use)
