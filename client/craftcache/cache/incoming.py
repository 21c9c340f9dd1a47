"""Incoming revisions: what is about to be published in huggingface_hub's tree.

A record of each, ``incoming/<key>-<commit>.json`` in the form of a manifest, is written before the
first of its files has its name there, and removed once its manifest is in place. Where a kill came
in between, it says that craftcache put the files there: so they count towards its quota, and are
the first to go. All calls block.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .durable import make_directory, write_file
from .manifest import MAX_BYTES, Manifest, ManifestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .directory import CacheDir

__all__ = ["forget_incoming", "incoming", "incoming_at", "note_incoming"]


def note_incoming(cache: CacheDir, key: str, coming: Manifest) -> None:
    """Record a revision before its first file comes.

    Args:
        cache: The cache directory.
        key: Key of the manifest that will be written.
        coming: The files that are about to come.

    Raises:
        OSError: It is not recorded.
    """
    name = f"{key}-{coming.revision}"
    path = _path(cache, name)
    make_directory(path.parent)
    write_file(path, coming.dump(name), staging=cache.staging)


def forget_incoming(cache: CacheDir, name: str) -> None:
    """Remove the record of that name, ``<key>-<commit>``, if there is one."""
    _path(cache, name).unlink(missing_ok=True)


def incoming(cache: CacheDir) -> Iterator[tuple[str, Manifest]]:
    """All recorded revisions by name, in no order."""
    for path in _path(cache, "").parent.glob("*.json"):
        if (manifest := incoming_at(cache, path.stem)) is not None:
            yield path.stem, manifest


def incoming_at(cache: CacheDir, name: str) -> Manifest | None:
    """The recorded revision of that name; None where there is none that can be read."""
    try:
        with _path(cache, name).open("rb") as file:
            is_ours = cache.is_ours(os.fstat(file.fileno()))
            return Manifest.parse(file.read(MAX_BYTES), name) if is_ours else None
    except (OSError, ManifestError):
        return None


def _path(cache: CacheDir, name: str) -> Path:
    return cache.private / "incoming" / f"{name}.json"
