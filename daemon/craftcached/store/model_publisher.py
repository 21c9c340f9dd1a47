"""Publishing verified files as models, one method for each kind of source, and telling of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from craftcache.cache.publish import (
    mark_asked_for,
    mark_superseded,
    publish_generation,
    publish_hub,
    publish_url,
    serve_generation,
)
from craftcache.sources import NO_SELECTION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import Manifest, Watched
    from craftcache.cache.publish import Verified
    from craftcache.digests import Promise
    from craftcache.sources import HubSource, RemoteSource, Selection, UrlSource
    from craftcached.events import Events

    from .changes import Changes

__all__ = ["ModelPublisher"]


class ModelPublisher:
    """Publishes what was verified, and records what else is known of it.

    Each is a change of the cache directory: it is finished once begun, even if its request has been
    cancelled since.

    Args:
        cache: The cache directory.
        changes: Makes the changes, each under the lock that it needs.
        events: Told of models that are published.
    """

    def __init__(self, cache: CacheDir, changes: Changes, events: Events) -> None:
        self._cache = cache
        self._changes = changes
        self._events = events

    async def publish_hub(
        self,
        source: HubSource,
        commit: str,
        files: Mapping[str, tuple[Verified, Promise]],
        origin: str,
        *,
        is_named: bool,
        as_need: bool = False,
        selection: Selection = NO_SELECTION,
    ) -> Manifest:
        """Publish files of one commit; see craftcache.cache.publish."""
        publish = partial(publish_hub, is_named=is_named, as_need=as_need, selection=selection)
        return self._told(
            await self._changes.add(
                source.repo_id, publish, self._cache, source, commit, files, origin
            )
        )

    async def publish_url(
        self,
        source: UrlSource,
        files: Mapping[str, tuple[Verified, str]],
        *,
        as_need: bool = False,
    ) -> Manifest:
        """Publish files of a URL; see craftcache.cache.publish."""
        publish = partial(publish_url, as_need=as_need)
        return self._told(await self._changes.add(str(source), publish, self._cache, source, files))

    async def publish_generation(
        self, name: str, watched: Watched, files: Mapping[str, Verified]
    ) -> Manifest:
        """Publish a generation of a watched directory; see craftcache.cache.publish."""
        return self._told(
            await self._changes.make(publish_generation, self._cache, name, watched, files)
        )

    async def serve_generation(self, name: str, generation: Manifest) -> Manifest:
        """Make a generation the served one; see craftcache.cache.publish."""
        return await self._changes.make(serve_generation, self._cache, name, generation)

    def _told(self, manifest: Manifest) -> Manifest:
        """Tell that a model was published."""
        self._events.tell(
            "published",
            source=manifest.source,
            revision=manifest.revision,
            size=manifest.size,
            by_name=manifest.is_by_name and manifest.watched is None,
        )
        return manifest

    async def mark_asked_for(self, source: RemoteSource) -> None:
        """Record that a dependency was also asked for by name; see craftcache.cache.publish."""
        await self._changes.make(mark_asked_for, self._cache, source)

    async def mark_superseded(self, source: HubSource) -> None:
        """Record that a revision has been superseded; see craftcache.cache.publish."""
        await self._changes.make(mark_superseded, self._cache, source)
