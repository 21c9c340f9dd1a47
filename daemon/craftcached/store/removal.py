"""Removing a model: every name that only it needs, and so every byte that nobody else has.

    manifest -> snapshot links -> refs -> blobs

The reverse of publication, so that a kill in between leaves no model with a part missing, only
files that no model names. What another model, another revision or a snapshot of huggingface_hub's
own still leads to stays. What was here for the model's sake alone goes with it. Indexes are left
to the sweep: the same checkpoint may be on its way under another name. A file that turned out wrong
loses its name alone: its models stay, and lack it. All calls block, and nothing may be published
meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.cache.durable import make_directory, staging_name, sync_directory
from craftcache.digests import Stamp
from craftcache.sources import HubSource, parse

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.hub_cache import HubTree
    from craftcache.cache.manifest import FileRecord, Manifest

__all__ = ["Removed", "remove", "remove_unneeded", "set_aside", "sweep"]


@dataclass(frozen=True, slots=True)
class Removed:
    """What a removal took away.

    Attributes:
        keys: Of the manifests: the model's, then those of what only it needed; none where there
            was no such model any more.
        freed: Bytes on the disk.
    """

    keys: tuple[str, ...] = ()
    freed: int = 0

    def __add__(self, other: Removed) -> Removed:
        return Removed(self.keys + other.keys, self.freed + other.freed)


def remove(cache: CacheDir, key: str, spared: Collection[str] = ()) -> Removed:
    """Remove a published model, and what is here for its sake alone.

    Args:
        cache: Where it is published.
        key: Of its manifest.
        spared: Keys of models that stay, though nobody needs them any more.

    Raises:
        OSError: Some of its files may be left, but it is no model any more.
    """
    manifest = cache.manifest_at(key)
    if manifest is None:
        return Removed()
    removed = Removed((key,), _remove_one(cache, key, manifest))
    return removed + remove_unneeded(cache, manifest, spared)


def remove_unneeded(cache: CacheDir, removed: Manifest, spared: Collection[str] = ()) -> Removed:
    """Remove what was here for the sake of a model that is gone, unless others need it; see remove.

    Args:
        cache: Where it is published.
        removed: The model.
        spared: Keys of models that stay.
    """
    also = Removed()
    for orphan in _orphans(cache, removed):
        if orphan not in spared:
            also += remove(cache, orphan, spared)
    return also


def set_aside(cache: CacheDir, record: FileRecord, stamp: Stamp) -> Path | None:
    """Take from a file the name that it is served by; returns the one in quarantine that it gets.

    Whoever has it open keeps it. Where the name is a link into the store that huggingface_hub's
    repositories share, the file itself goes, for it is wrong for all of them.

    Args:
        cache: Where it is published.
        record: Names it.
        stamp: Of the file that turned out wrong; None is returned where the name is another's now.

    Raises:
        OSError: It may be served still.
    """
    name = cache.path(record)
    try:
        if Stamp.of(name.stat()) != stamp:
            return None
        path = name.resolve(strict=True)
    except FileNotFoundError:
        return None
    quarantined = make_directory(cache.quarantine) / f"{path.name}-{staging_name()}"
    os.replace(path, quarantined)
    name.unlink(missing_ok=True)
    for directory in {cache.quarantine, path.parent, name.parent}:
        sync_directory(directory)
    return quarantined


def _orphans(cache: CacheDir, removed: Manifest) -> list[str]:
    """The keys of what a model needed, nobody else needs, and nobody asked for by name."""
    if not removed.needs:
        return []
    manifests = {key: cache.manifest_at(key) for key in cache.manifest_keys()}
    known = {key: manifest for key, manifest in manifests.items() if manifest is not None}
    if len(known) < len(manifests):
        return []  # another release may have written one, and nobody knows what it needs
    needed = frozenset().union(*(manifest.needed_keys for manifest in known.values()))
    candidates = sorted((removed.needed_keys & known.keys()) - needed)
    return [key for key in candidates if known[key].needed_only]


def _remove_one(cache: CacheDir, key: str, manifest: Manifest) -> int:
    source = parse(manifest.source)
    cache.manifest_path(key).unlink(missing_ok=True)
    others = tuple(cache.manifests())
    linked: set[str] = set()
    if isinstance(source, HubSource):
        tree = cache.hub_tree(source.repo_id)
        _unlink_snapshot(tree, manifest, others)
        linked = _linked_blobs(tree)
    kept_paths = {record.path for other in others for record in other.files}
    freed = 0
    for record in manifest.files:
        if record.path not in kept_paths and os.path.basename(record.path) not in linked:
            freed += _unlink_blob(cache, record)
    if isinstance(source, HubSource):
        _remove_empty(cache.hub_tree(source.repo_id).root)
    cache.sweep_torch_checkpoints()
    return freed


def sweep(cache: CacheDir, *, before: float) -> int:
    """Remove blobs and indexes that no model names, as new revisions and kills leave them.

    huggingface_hub's own snapshots are left alone: programs may name them by their commit.

    Args:
        cache: Where to look.
        before: Seconds since the epoch; what was linked later may be about to be published.

    Returns:
        Bytes freed on the disk, or when the last worker closes them.
    """
    keys = cache.manifest_keys()
    manifests = [manifest for key in keys if (manifest := cache.manifest_at(key))]
    if len(manifests) < len(keys):
        return 0  # one may have been written by another release, and nobody knows what it names
    records = [record for manifest in manifests for record in manifest.files]
    kept = {record.path for record in records}
    kept |= {cache.relative(cache.index_path(record.sha256)) for record in records}
    freed = 0
    cast_by_earlier_releases = (cache.private / "casts").glob("*")
    for path in (*cache.url_blobs(), *cache.indexes(), *cast_by_earlier_releases):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ctime < before and cache.relative(path) not in kept:
                freed += _unlink(path)
    cache.sweep_torch_checkpoints()
    return freed


def _unlink(path: Path) -> int:
    """Remove one name of a file; returns the bytes that it freed."""
    try:
        status = path.stat()
        path.unlink()
    except FileNotFoundError:
        return 0
    return status.st_size if status.st_nlink == 1 else 0


def _unlink_snapshot(tree: HubTree, manifest: Manifest, others: tuple[Manifest, ...]) -> None:
    """Take a model's files out of its snapshot, and its refs once the snapshot is empty.

    A second name of the same commit keeps what it has of it.
    """
    kept = {
        record.filename
        for other in others
        if other.revision == manifest.revision
        for record in other.files
    }
    for record in manifest.files:
        if record.filename not in kept:
            tree.pointer(manifest.revision, record.filename).unlink(missing_ok=True)
    snapshot = tree.root / "snapshots" / manifest.revision
    _remove_empty(snapshot)
    if not snapshot.exists():
        for ref in (tree.root / "refs").rglob("*"):
            if ref.is_file() and ref.read_text("ascii", "replace").strip() == manifest.revision:
                ref.unlink(missing_ok=True)


def _linked_blobs(tree: HubTree) -> set[str]:
    """The names of the blobs that snapshots of a repository lead to, ours and the library's."""
    pointers = (tree.root / "snapshots").rglob("*")
    return {os.path.basename(os.readlink(path)) for path in pointers if path.is_symlink()}


def _unlink_blob(cache: CacheDir, record: FileRecord) -> int:
    """Remove one name of a blob; returns the bytes that it freed."""
    path = cache.path(record)
    try:
        names = path.stat().st_nlink
        shared = path.resolve() if path.is_symlink() else None
        path.unlink()
    except FileNotFoundError:
        return 0
    if shared is not None:
        _sweep_shared(cache, shared)
    is_freed = names == 1 and (shared is None or not shared.exists())
    return record.size if is_freed else 0


def _sweep_shared(cache: CacheDir, stored: Path) -> None:
    """Remove a file of huggingface_hub's store that all repositories share, if none needs it."""
    with contextlib.suppress(ImportError):
        # Private, but only that library knows who needs it; older releases have no such store.
        from huggingface_hub.utils import _shared_blobs

        _shared_blobs.sweep_shared_blob(stored, cache_dir=cache.root.resolve())


def _remove_empty(directory: Path) -> None:
    """Remove ``directory`` and those below it, as far as no file is in them at that moment."""
    for path, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
