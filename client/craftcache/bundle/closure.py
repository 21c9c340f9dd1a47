"""Cached models together with all that they need, as a lock or a bundle holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.cache.manifest import manifest_key
from craftcache.errors import InvalidSource, NotFound
from craftcache.locked import LockedRevision, LockEntry
from craftcache.sources import HubSource, UrlSource, parse

from .lockfile import LockedModel, LockFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import FileRecord, Manifest

__all__ = ["Closure", "find_closure"]


@dataclass(frozen=True, slots=True)
class Closure:
    """Models of a cache, and all other models there that they need.

    Attributes:
        manifests: Their manifests, by source as shown: those that were named first.
        named: The sources that were named.
    """

    manifests: dict[str, Manifest]
    named: frozenset[str]

    @property
    def lock(self) -> LockFile:
        """The closure as a lock."""
        return LockFile(tuple(map(self._locked, self.manifests.values())))

    @property
    def records(self) -> dict[str, FileRecord]:
        """A record of each file, by sha256."""
        return {
            record.sha256: record
            for manifest in self.manifests.values()
            for record in manifest.files
        }

    def _locked(self, manifest: Manifest) -> LockedModel:
        source = _lockable(manifest.source)
        is_hub = isinstance(source, HubSource)
        files = tuple(
            LockEntry(file.filename, file.sha256, file.size, file.etag if is_hub else None)
            for file in manifest.files
        )
        is_needed_only = manifest.source not in self.named
        needs = tuple(need.parsed.shown for need in manifest.needs)
        return LockedModel(source, LockedRevision(manifest.revision, files, is_needed_only), needs)


def find_closure(cache: CacheDir, sources: Sequence[str]) -> Closure:
    """The closure of cached models.

    Args:
        cache: The cache.
        sources: The models.

    Raises:
        NotFound: One of them, or of what they need, is not in the cache.
        InvalidSource: One of them is a watch, or a URL with a signature that will not last.
    """
    named = [_lockable(text).shown for text in sources]
    found: dict[str, Manifest] = {}
    for shown in dict.fromkeys(named):
        manifest = cache.manifest_at(manifest_key(parse(shown)), ours=True)
        if manifest is None:
            raise NotFound("not in the cache", source=shown, hint=f"craftcache warm {shown}")
        found[shown] = manifest
    wanted = list(found.values())
    while wanted:
        manifest = wanted.pop(0)
        for need in manifest.needs:
            shown = need.parsed.shown
            needed = cache.manifest_at(manifest_key(need.parsed), ours=True)
            if needed is None or not need.is_met_by([file.filename for file in needed.files]):
                raise NotFound(
                    f"{shown} is not in the cache, {need.why}",
                    source=manifest.source,
                    hint=f"craftcache warm {manifest.source}",
                )
            if shown not in found:
                found[shown] = needed
                wanted.append(needed)
    return Closure(found, frozenset(named))


def _lockable(text: str) -> HubSource | UrlSource:
    source = parse(text)
    if not isinstance(source, HubSource | UrlSource):
        raise InvalidSource(
            "a watched directory cannot be locked",
            source=source.shown,
            hint="Publish the export, and lock what it is published as",
        )
    if isinstance(source, UrlSource) and "?" in source.shown:
        raise InvalidSource(
            "a URL with a query cannot be locked: a signature ends, and must not be written down",
            source=source.shown,
            hint="Serve it at a URL without one",
        )
    return source
