"""The format of a cache directory as a whole: one file says which release's rules it is written by.

    .craftcache/format.json    {"version": 1, "written_by": "0.2.0", "checksum": "<64 hex>"}

A release refuses a cache of a later format and changes nothing in it. Release 0.1.0 wrote no such
file; its caches are of version 1. A damaged one is written anew: every manifest and index has a
version of its own.

Manifests of a later version say the same of a cache only where this file does not say otherwise,
for then it may be lost. In a cache that this file says is ours, such a manifest comes from other
hands, or from a worker of a later release that fetched for itself: it is no manifest to us, and
stops nothing but itself. A load or a warm of its model publishes another in its place.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from craftcache.errors import Unavailable
from craftcache.version import VERSION

from .durable import write_file
from .manifest import is_newer
from .plain_file import read_plain
from .sealed import check_seal, seal

if TYPE_CHECKING:
    from craftcache.cache.directory import CacheDir

__all__ = ["FORMAT", "check_format", "newer_format", "record_format"]

FORMAT: Final = 1
"""The version that this release writes and the latest that it reads."""

MAX_BYTES: Final = 64 * 1024

_NAME: Final = "format.json"


def newer_format(cache: CacheDir) -> str | None:
    """What of a cache is of a later format than this release knows; None where nothing is."""
    version = _recorded(cache)
    if version is not None and version > FORMAT:
        return f"it has format {version}, and this release ({VERSION}) knows {FORMAT}"
    return None


def check_format(cache: CacheDir) -> None:
    """Refuse a cache that a later release wrote; reads only.

    Raises:
        Unavailable: A later release wrote it, or, where no format is recorded, manifests in it.
    """
    why = newer_format(cache)
    if why is None and _recorded(cache) is None:
        for key in cache.manifest_keys():
            if _is_newer_manifest(cache, key):
                why = f"the manifest {key} in it has a version that this release does not know"
                break
    if why is not None:
        raise Unavailable(
            f"a newer release wrote the cache {cache.root}: {why}; nothing in it was changed",
            hint="Install that release again, or give this one another cache_dir",
            retryable=False,
        )


def record_format(cache: CacheDir) -> None:
    """Record the format of a cache that was checked, unless it is recorded.

    Raises:
        OSError: It cannot be written.
    """
    if _recorded(cache) is None:
        document = seal({"version": FORMAT, "written_by": VERSION})
        write_file(cache.private / _NAME, document, staging=cache.staging)


def _recorded(cache: CacheDir) -> int | None:
    try:
        document = json.loads(read_plain(cache.private / _NAME, MAX_BYTES))
        check_seal(document)
        version = document["version"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return version if type(version) is int else None


def _is_newer_manifest(cache: CacheDir, key: str) -> bool:
    if cache.manifest_at(key) is not None:  # kept in memory then, for the first who asks for it
        return False
    try:
        return is_newer(read_plain(cache.manifest_path(key), MAX_BYTES))
    except OSError:
        return False
