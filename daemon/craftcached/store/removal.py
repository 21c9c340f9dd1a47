"""Removal of models: all names that only the model uses, and so all bytes that only it has.

    manifest -> snapshot links -> refs -> blobs

The reverse of publication, so that a kill in between leaves no model with a part missing, only
files that no model names. Files stay that another model, another revision or a snapshot made by
huggingface_hub itself leads to. Dependencies that only this model had go with it. Indexes are left
to the sweep: the same checkpoint may be on its way under another name. A file whose content turned
out wrong loses its name only: its models stay, and lack it.

All calls block. Nothing may be published meanwhile: Store makes them in a turn of their own.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.cache.durable import sync_directory
from craftcache.cache.manifest import manifest_key
from craftcache.cache.paths import real_path
from craftcache.cache.underway import forget_underway, note_underway, underway_at
from craftcache.digests import Stamp
from craftcache.sources import HubSource, parse

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.hub_cache import HubTree
    from craftcache.cache.manifest import FileRecord, Manifest

__all__ = [
    "Removed",
    "remove",
    "remove_underway",
    "remove_unneeded",
    "renew_index",
    "set_aside",
    "superseded_revisions",
    "sweep",
]


DERIVED_SECONDS = 86400.0
"""Age of an index without a model after which it is swept: no fetch of a model takes so long."""


@dataclass(frozen=True, slots=True)
class Removed:
    """The result of a removal.

    Attributes:
        keys: Keys of the removed manifests: the model's, then those of its dependencies; none
            where there was no such model any more.
        freed: Bytes freed on the disk.
    """

    keys: tuple[str, ...] = ()
    freed: int = 0

    def __add__(self, other: Removed) -> Removed:
        return Removed(self.keys + other.keys, self.freed + other.freed)


def remove(cache: CacheDir, key: str, spared: Collection[str] = ()) -> Removed:
    """Remove a published model, and the dependencies that only it had.

    Args:
        cache: The cache directory.
        key: Key of the model's manifest.
        spared: Keys of models that stay, though no model depends on them any more.

    Raises:
        OSError: Some of its files may be left, but the manifest is gone.
    """
    manifest = cache.manifest_at(key)
    if manifest is None:
        return Removed()
    removed = Removed((key,), _remove_one(cache, key, manifest))
    return removed + remove_unneeded(cache, manifest, spared)


def remove_unneeded(cache: CacheDir, removed: Manifest, spared: Collection[str] = ()) -> Removed:
    """Remove the dependencies of a removed model that no other model has; see remove.

    Their superseded revisions go with them: they were here for nobody else.

    Args:
        cache: The cache directory.
        removed: Manifest of the removed model.
        spared: Keys of models that stay.
    """
    also = Removed()
    for orphan in _orphans(cache, removed):
        manifest = cache.manifest_at(orphan)
        if orphan in spared or manifest is None:
            continue
        also += remove(cache, orphan, spared)
        for earlier in superseded_revisions(cache, manifest):
            if earlier not in spared:
                also += remove(cache, earlier, spared)
    return also


def superseded_revisions(cache: CacheDir, removed: Manifest) -> list[str]:
    """Keys of the superseded revisions that a removed model leaves; none of a pinned revision."""
    source = parse(removed.source)
    if not isinstance(source, HubSource) or source.is_pinned:
        return []
    return [
        key
        for key, manifest in cache.published()
        if manifest.superseded and key == manifest_key(HubSource(source.repo_id, manifest.revision))
    ]


def remove_underway(cache: CacheDir, name: str) -> int:
    """Remove what a kill has left of a publication or removal, but for what others need.

    Args:
        cache: The cache directory.
        name: Name of its record, see craftcache.cache.underway.

    Returns:
        Bytes freed on the disk.
    """
    left = underway_at(cache, name)
    freed = 0
    if left is not None and not _is_published(cache, left):
        freed = _remove_files(cache, left, tuple(cache.manifests()))
    forget_underway(cache, name)
    return freed


def _is_published(cache: CacheDir, left: Manifest) -> bool:
    """Whether that very revision is published by now, and has to keep its snapshot."""
    current = cache.manifest(parse(left.source))
    return current is not None and current.revision == left.revision


def set_aside(cache: CacheDir, record: FileRecord, stamp: Stamp) -> Path | None:
    """Move a file with wrong content to quarantine; returns its path there.

    Processes that have the file open keep it. Where its name is a link into the store that
    huggingface_hub's repositories share, the file there is moved, as it is wrong for all of them.
    Of a link that leads out of the cache, or to what is no file, only the link is: what is there
    belongs to somebody else, and may be a device of the system.

    Args:
        cache: The cache directory.
        record: Record of the published file.
        stamp: Stamp of the file that turned out wrong; if the name leads to another file by now,
            nothing is moved and None is returned.

    Raises:
        OSError: The file could not be moved, and may still be served.
    """
    name = cache.path(record)
    try:
        if Stamp.of(name.stat()) != stamp:
            return None
        path = real_path(name)
        if name.is_symlink() and not (
            path.is_file() and path.is_relative_to(real_path(cache.root))
        ):
            path = name
    except FileNotFoundError:
        return None
    quarantined = cache.set_aside(path)
    if quarantined is not None:
        name.unlink(missing_ok=True)
        sync_directory(name.parent)
    return quarantined


def _orphans(cache: CacheDir, removed: Manifest) -> list[str]:
    """Keys of a model's dependencies that no other model has and that were not warmed by name."""
    if not removed.needs:
        return []
    manifests = {key: cache.manifest_at(key) for key in cache.manifest_keys()}
    known = {key: manifest for key, manifest in manifests.items() if manifest is not None}
    if len(known) < len(manifests):
        return []  # an unreadable manifest, as of another release, may depend on any of them
    needed = frozenset().union(*(manifest.needed_keys for manifest in known.values()))
    candidates = sorted((removed.needed_keys & known.keys()) - needed)
    return [key for key in candidates if known[key].needed_only]


def _remove_one(cache: CacheDir, key: str, manifest: Manifest) -> int:
    # A kill in between leaves files in the Hub's tree that the next one to need room removes. On a
    # full disk it must do without the record.
    if isinstance(parse(manifest.source), HubSource):
        with contextlib.suppress(OSError):
            note_underway(cache, key, manifest)
    cache.manifest_path(key).unlink(missing_ok=True)
    freed = _remove_files(cache, manifest, tuple(cache.manifests()))
    forget_underway(cache, f"{key}-{manifest.revision}")
    return freed


def _remove_files(cache: CacheDir, manifest: Manifest, others: tuple[Manifest, ...]) -> int:
    """Remove what only ``manifest`` has, and not ``others``; returns the bytes freed."""
    source = parse(manifest.source)
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
    cache.torch.sweep()
    return freed


def sweep(cache: CacheDir, *, before: float, derived_before: float | None = None) -> int:
    """Remove blobs and indexes that no model names, as new revisions and kills leave them.

    huggingface_hub's own snapshots are left alone: programs may name them by their commit.

    Args:
        cache: The cache directory.
        before: Seconds since the epoch; files linked later may be about to be published.
        derived_before: Likewise of what is derived from a file, such as its index: it comes while
            the model's other files are still being fetched. None stands for a day ago.

    Returns:
        Bytes freed on the disk, or when the last worker closes them.
    """
    keys = cache.manifest_keys()
    manifests = [manifest for key in keys if (manifest := cache.manifest_at(key))]
    if len(manifests) < len(keys):
        return 0  # an unreadable manifest, as of another release, may name any of the files
    records = [record for manifest in manifests for record in manifest.files]
    digests = {record.sha256 for record in records}
    kept = {record.path for record in records}
    freed = 0
    blobs = (path for path in cache.url_blobs.paths() if cache.relative(path) not in kept)
    derived = (
        path for path in (*cache.indexes(), *cache.stamps.paths()) if path.stem not in digests
    )
    cast_by_earlier_releases = (cache.private / "casts").glob("*")
    if derived_before is None:
        derived_before = time.time() - DERIVED_SECONDS
    freed += _unlink_older(cache, (*blobs, *cast_by_earlier_releases), before)
    freed += _unlink_older(cache, derived, min(before, derived_before))
    cache.torch.sweep()
    return freed


def renew_index(cache: CacheDir, sha256: str) -> None:
    """Make an old index look new to the sweep, so that it stays until its model is published."""
    path = cache.index_path(sha256)
    with contextlib.suppress(OSError):
        if path.stat().st_ctime < time.time() - DERIVED_SECONDS / 2:
            os.utime(path)


def _unlink_older(cache: CacheDir, paths: Iterable[Path], before: float) -> int:
    """Remove the names of those that were linked before that time; returns the bytes freed."""
    freed = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ctime < before:
                with cache.stamps.keeping(path.name, path):
                    freed += _unlink(path)
    return freed


def _unlink(path: Path) -> int:
    """Remove a name of a file of ours; returns the bytes that this freed."""
    try:
        status = path.stat()
        path.unlink()
    except FileNotFoundError:
        return 0
    return status.st_size if status.st_nlink == 1 else 0


def _unlink_snapshot(tree: HubTree, manifest: Manifest, others: tuple[Manifest, ...]) -> None:
    """Unlink a model's files from its snapshot, and its refs once the snapshot is empty.

    Files that another model of the same commit has stay linked. A snapshot's directory that is a
    link leads to links of somebody else's, so it is removed itself.
    """
    kept = {
        record.filename
        for other in others
        if other.revision == manifest.revision
        for record in other.files
    }
    for record in manifest.files:
        if record.filename not in kept:
            tree.unlink_pointer(manifest.revision, record.filename)
    snapshot = tree.root / "snapshots" / manifest.revision
    _remove_empty(snapshot)
    if not snapshot.exists():
        for ref in (tree.root / "refs").rglob("*"):
            if ref.is_file() and ref.read_text("ascii", "replace").strip() == manifest.revision:
                ref.unlink(missing_ok=True)


def _linked_blobs(tree: HubTree) -> set[str]:
    """Names of the blobs that a repository's snapshots link to, ours and huggingface_hub's."""
    pointers = (tree.root / "snapshots").rglob("*")
    return {os.path.basename(os.readlink(path)) for path in pointers if path.is_symlink()}


def _unlink_blob(cache: CacheDir, record: FileRecord) -> int:
    """Remove one name of a blob; returns the bytes that this freed."""
    if cache.is_owners(record):
        return 0
    path = cache.path(record)
    try:
        names = path.stat().st_nlink
        shared = real_path(path) if path.is_symlink() else None
        with cache.stamps.keeping(record.sha256, path):
            path.unlink()
    except FileNotFoundError:
        return 0
    if shared is not None:
        _sweep_shared(cache, shared)
    is_freed = names == 1 and (shared is None or not shared.exists())
    return record.size if is_freed else 0


def _sweep_shared(cache: CacheDir, stored: Path) -> None:
    """Remove a file from the store that huggingface_hub's repositories share, if none links it."""
    with contextlib.suppress(ImportError):
        # Private, but only that library knows who needs it; older releases have no such store.
        from huggingface_hub.utils import _shared_blobs

        _shared_blobs.sweep_shared_blob(stored, cache_dir=cache.root.resolve())


def _remove_empty(directory: Path) -> None:
    """Remove ``directory`` and the directories below it that are empty at that moment."""
    for path, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
