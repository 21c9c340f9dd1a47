"""Manifests that cannot be read any more, and what can still be told of their models."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from craftcache.cache.manifest import MAX_BYTES, Manifest, ManifestError, manifest_key
from craftcache.cache.manifest import is_newer as is_of_newer_release
from craftcache.cache.plain_file import IS_NO_FILE, plain
from craftcache.errors import CraftcacheError
from craftcache.sources import check_filename, parse
from craftcached.store.manifest_repair import quarantine_manifest, restore_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from craftcache.cache.directory import CacheDir
    from craftcache.sources import RemoteSource
    from craftcached.store.store import Store

__all__ = ["DamagedManifest", "find_damaged"]

log = logging.getLogger("craftcached")

_SOURCE = re.compile(r'"source":\s*("(?:[^"\\]|\\.)*")')
_FILENAME = re.compile(r'"filename":\s*("(?:[^"\\]|\\.)*")')
_REVISION = re.compile(r'"revision":\s*"([0-9a-f]{40})"')
_FOLDER = re.compile(r'"path":\s*"models--([^"/\\]+)/blobs/')
# Written only where they are true, so a value that is damaged does not matter.
_NEEDED_ONLY = re.compile(r'"needed_only":')
_SUPERSEDED = re.compile(r'"superseded":')


@dataclass(frozen=True, slots=True)
class DamagedManifest:
    """A manifest that cannot be read.

    Attributes:
        key: Key that its file is named by.
        path: Path of the file, relative to the cache directory.
        source: The source that it is for; None where that is not certain.
        filenames: Names of the source's files, as far as they can be told.
        as_need: Whether the model was cached as a dependency only, as far as that can be told.
        superseded: Whether it was a superseded revision, likewise.
        is_restored: Whether it was written again as it was, from memory.
        is_newer: Whether it is whole, and of a later version; it is left as it is.
        quarantined: Its place in quarantine, where its source is not known; else None.
    """

    key: str
    path: str
    source: RemoteSource | None = None
    filenames: tuple[str, ...] = ()
    as_need: bool = False
    superseded: bool = False
    is_restored: bool = False
    is_newer: bool = False
    quarantined: str | None = None

    @property
    def shown(self) -> str:
        """The source as shown to people; the path where it is not known."""
        return self.source.shown if self.source else self.path


async def find_damaged(store: Store) -> list[DamagedManifest]:
    """All damaged manifests; those that are known are restored, and hopeless ones set aside.

    Raises:
        OSError: One of them cannot be written or set aside.
    """
    found = await asyncio.to_thread(lambda: list(_damaged(store.cache)))
    treated = [await _treated(store, damaged) for damaged in found]
    return [damaged for damaged in treated if damaged is not None]


async def _treated(store: Store, damaged: DamagedManifest) -> DamagedManifest | None:
    """Restore a damaged manifest, or set it aside if it is hopeless; see find_damaged.

    Returns:
        What became of it; None if a good one was published in its place meanwhile.
    """
    if damaged.is_newer:
        return damaged
    known = store.remembered(damaged.key)
    if known is not None:
        if not await restore_manifest(store, damaged.key, known):
            return None
        return DamagedManifest(damaged.key, damaged.path, parse(known.source), is_restored=True)
    if damaged.source is not None:
        return damaged
    quarantined = await quarantine_manifest(store, damaged.key)
    if quarantined is None:
        return None
    log.error("%s cannot be read, and does not say which source it is for", damaged.path)
    return DamagedManifest(damaged.key, damaged.path, quarantined=quarantined)


def _damaged(cache: CacheDir) -> list[DamagedManifest]:
    found = []
    for key in cache.manifest_keys():
        path = cache.manifest_path(key)
        try:
            with open(path, "rb", opener=plain) as file:
                if os.fstat(file.fileno()).st_uid not in cache.trusted_uids:
                    continue
                data = file.read(MAX_BYTES)
        except OSError as error:
            if error.errno not in IS_NO_FILE:  # removed just now
                continue
            data = b""
        try:
            Manifest.parse(data, key)
        except ManifestError:
            described = _described(cache, key, data.decode("utf-8", "replace"))
            found.append(replace(described, is_newer=is_of_newer_release(data)))
    return found


def _described(cache: CacheDir, key: str, text: str) -> DamagedManifest:
    """What the text of a damaged manifest still says; its key tells whether that is true."""
    path = cache.relative(cache.manifest_path(key))
    for spelled in _sources(text):
        try:
            source = parse(spelled)
            if manifest_key(source) != key:
                continue
            names = [
                check_filename(json.loads(name), source=source.shown)
                for name in dict.fromkeys(_FILENAME.findall(text))
            ]
        except (CraftcacheError, ValueError):
            continue
        return DamagedManifest(
            key,
            path,
            source,
            tuple(names),
            as_need=_NEEDED_ONLY.search(text) is not None,
            superseded=_SUPERSEDED.search(text) is not None,
        )
    return DamagedManifest(key, path)


def _sources(text: str) -> Iterator[str]:
    """What the text may mean as its source: the one that it names, and those of its files' paths.

    In ``models--org--name`` the first two dashes stand between the two parts.
    """
    for spelled in _SOURCE.findall(text):
        with contextlib.suppress(ValueError):
            yield json.loads(spelled)
    revisions = ("", *(f"@{revision}" for revision in _REVISION.findall(text)))
    for folder in dict.fromkeys(_FOLDER.findall(text)):
        for revision in revisions:
            yield folder.replace("--", "/", 1) + revision
