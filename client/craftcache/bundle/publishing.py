"""Importing a bundle without a daemon: its models are published as a warm would have left them."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from craftcache.cache.publish import Verified, publish_hub, publish_url
from craftcache.checkpoint.filenames import is_pickled
from craftcache.checkpoint.index import dump
from craftcache.checkpoint.inspection import inspect
from craftcache.checkpoint.reader import read_index
from craftcache.digests import Digest, Promise
from craftcache.errors import NotACheckpoint, PolicyDenied
from craftcache.origins.hub import commit_origin, hub_endpoint
from craftcache.sources import HubSource, shown_url

from .archive import unpack

if TYPE_CHECKING:
    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import Manifest

    from .archive import Readable, Unpacked
    from .lockfile import LockedModel

__all__ = ["import_bundle", "verified_files"]


def import_bundle(stream: Readable, cache: CacheDir) -> list[Manifest]:
    """Publish the models of a bundle in a cache of this process's user; blocks.

    Every byte is hashed and every checkpoint inspected before the first model is published. What a
    model needs is published before it.

    Args:
        stream: The bundle.
        cache: The cache.

    Returns:
        The manifests, in the order of the bundle's lock.

    Raises:
        PolicyDenied: This user may not write to the cache.
        IntegrityError: The bundle is damaged; nothing was imported.
        UnsafeCheckpoint: Loading one of its files would run code; nothing was imported.
        StorageFull: There is no room for it.
        OSError: It cannot be read, or the cache not be written.
    """
    if not cache.is_writable():
        raise PolicyDenied(
            f"this user may not write to {cache.root}",
            hint="Run it as the user that the cache belongs to, or start craftcached",
        )
    cache.create()
    with contextlib.ExitStack() as stack:
        unpacked = unpack(stream, cache.staging)
        for file in unpacked.files.values():
            stack.callback(cache.discard, file)
        for model in unpacked.lock.models:
            _inspect(cache, model, unpacked)
        published = {
            model.source.shown: _publish(cache, model, unpacked)
            for model in reversed(unpacked.lock.models)
        }
    return [published[model.source.shown] for model in unpacked.lock.models]


def verified_files(model: LockedModel, unpacked: Unpacked) -> dict[str, tuple[Verified, Promise]]:
    """The files of a model of a bundle, by name, each with the promise that it kept."""
    return {
        entry.filename: (
            Verified(unpacked.files[entry.sha256], entry.etag, 0, entry.size),
            Promise(entry.size, Digest.from_hub_etag(entry.etag or entry.sha256)),
        )
        for entry in model.lock.files
    }


def _inspect(cache: CacheDir, model: LockedModel, unpacked: Unpacked) -> None:
    """Refuse what is unsafe to load; write the indexes of the rest, by which needs are found."""
    for entry in model.lock.files:
        path = unpacked.files[entry.sha256].path
        if model.lock.needed_only or not is_pickled(entry.filename):
            continue
        with contextlib.suppress(NotACheckpoint):  # data of other programs, whatever its name
            inspect(path, source=model.source.shown)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                cache.write_index(entry.sha256, dump(read_index(descriptor)))
            finally:
                os.close(descriptor)


def _publish(cache: CacheDir, model: LockedModel, unpacked: Unpacked) -> Manifest:
    files, lock = verified_files(model, unpacked), model.lock
    if isinstance(model.source, HubSource):
        origin = commit_origin(hub_endpoint(), model.source, lock.revision)
        return publish_hub(
            cache,
            model.source,
            lock.revision,
            files,
            origin,
            is_named=True,
            as_need=lock.needed_only,
        )
    shown = {
        name: (verified, shown_url(model.source.file_url(name)))
        for name, (verified, _) in files.items()
    }
    return publish_url(cache, model.source, shown, as_need=lock.needed_only)
