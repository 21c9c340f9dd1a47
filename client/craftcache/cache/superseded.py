"""Superseded revisions: what a repository's model was before a newer revision took its place.

Their snapshots stay in huggingface_hub's tree, for a program may name them by their commit. A
record of each, ``superseded/<key>-<commit>.json`` in the form of a manifest, says that craftcache
put them there, so that they count towards its quota and are the first to go. It is written before
the first of its files comes: one that a kill left halfway is taken for superseded. All calls block.
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

__all__ = ["note_superseded", "superseded", "superseded_at", "superseded_path"]


def superseded_path(cache: CacheDir, name: str) -> Path:
    """Path of the record with that name."""
    return cache.private / "superseded" / f"{name}.json"


def note_superseded(cache: CacheDir, key: str, earlier: Manifest) -> None:
    """Record a revision, before its first file comes and before the next one takes its place.

    So there is a record of the current revision too: whoever reads it compares.

    Args:
        cache: The cache directory.
        key: Key of the manifest.
        earlier: The manifest so far.

    Raises:
        OSError: It is not recorded.
    """
    name = f"{key}-{earlier.revision}"
    path = superseded_path(cache, name)
    make_directory(path.parent)
    write_file(path, earlier.dump(name), staging=cache.staging)


def superseded(cache: CacheDir) -> Iterator[tuple[str, Manifest]]:
    """All recorded revisions by name, in no order; those that are current again too."""
    for path in superseded_path(cache, "").parent.glob("*.json"):
        if (manifest := superseded_at(cache, path.stem)) is not None:
            yield path.stem, manifest


def superseded_at(cache: CacheDir, name: str) -> Manifest | None:
    """The recorded revision of that name; None where there is none that can be read."""
    try:
        with superseded_path(cache, name).open("rb") as file:
            is_ours = cache.is_ours(os.fstat(file.fileno()))
            return Manifest.parse(file.read(MAX_BYTES), name) if is_ours else None
    except (OSError, ManifestError):
        return None
