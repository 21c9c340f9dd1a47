"""What is under way in huggingface_hub's tree: revisions that are being published or removed.

A record of each, ``underway/<key>-<commit>.json`` in the form of a manifest, is written before the
first of its files gets or loses its name there, and removed after the last step. Where a kill came
in between, it says that craftcache put there what is left: so it counts towards the quota, and
is the first to go, an hour later, as it may be a worker's that still publishes. All calls block.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .durable import make_directory, write_file
from .manifest import MAX_BYTES, Manifest, ManifestError
from .plain_file import plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .directory import CacheDir

__all__ = ["forget_underway", "underway", "underway_at", "note_underway"]


def note_underway(cache: CacheDir, key: str, manifest: Manifest) -> None:
    """Record a revision before its first file comes or goes.

    Args:
        cache: The cache directory.
        key: Key of its manifest.
        manifest: The files that are about to come or go.

    Raises:
        OSError: It is not recorded.
    """
    name = f"{key}-{manifest.revision}"
    path = _path(cache, name)
    make_directory(path.parent)
    write_file(path, manifest.dump(name), staging=cache.staging)


def forget_underway(cache: CacheDir, name: str) -> None:
    """Remove the record of that name, ``<key>-<commit>``, if there is one."""
    _path(cache, name).unlink(missing_ok=True)


def underway(cache: CacheDir) -> Iterator[tuple[str, Manifest]]:
    """All recorded revisions by name, in no order."""
    for path in _path(cache, "").parent.glob("*.json"):
        if (manifest := underway_at(cache, path.stem)) is not None:
            yield path.stem, manifest


def underway_at(cache: CacheDir, name: str) -> Manifest | None:
    """The recorded revision of that name; None where there is none that can be read."""
    try:
        with open(_path(cache, name), "rb", opener=plain) as file:
            is_ours = cache.is_ours(os.fstat(file.fileno()))
            return Manifest.parse(file.read(MAX_BYTES), name) if is_ours else None
    except (OSError, ManifestError):
        return None


def _path(cache: CacheDir, name: str) -> Path:
    return cache.private / "underway" / f"{name}.json"
