"""The names by which unmodified programs reach a model's files: looked at, and put right.

huggingface_hub's snapshot links and refs, and torch.hub's links, decide which bytes an unmodified
program loads, and none of them has a digest. Nothing here hashes; all of it blocks, and runs on the
store's writing thread.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from craftcache.sources import HubSource, is_commit, parse

if TYPE_CHECKING:
    from craftcache.cache.directory import CacheDir
    from craftcache.cache.hub_cache import HubTree
    from craftcache.cache.manifest import FileRecord, Manifest

__all__ = ["mend_links"]


def mend_links(cache: CacheDir, key: str, manifest: Manifest) -> list[FileRecord]:
    """Put right the links and the ref that lead to a model's files.

    Args:
        cache: The cache.
        key: Key of the model's manifest.
        manifest: The manifest; where another is published by now, or none, nothing is done: links
            of a removed model would keep the files that it shared.

    Returns:
        The files to which something led elsewhere or nowhere.

    Raises:
        OSError: A link cannot be put right.
        TreeObstacle: A file or directory is in the way.
    """
    if cache.manifest_at(key) != manifest:
        return []
    source = parse(manifest.source)
    if any(map(cache.is_owners, manifest.files)):
        return []  # what leads to the files of a cache that another daemon owns is that daemon's
    present = [record for record in manifest.files if cache.path(record).exists()]
    if not isinstance(source, HubSource):
        return [record for record in present if _mend_torch_link(cache, record)]
    tree = cache.hub_tree(source.repo_id)
    mended = [record for record in present if _mend_pointer(cache, tree, manifest, record)]
    if present and not mended and _mend_ref(tree, source.revision, manifest.revision):
        mended = present[:1]
    return mended


def _mend_pointer(cache: CacheDir, tree: HubTree, manifest: Manifest, record: FileRecord) -> bool:
    """Put a snapshot's link right; returns whether that was needed."""
    blob = cache.path(record)
    if _leads_to(tree.pointer(manifest.revision, record.filename), blob):
        return False
    tree.link_snapshot(manifest.revision, {record.filename: blob.name})
    return True


def _mend_ref(tree: HubTree, revision: str, commit: str) -> bool:
    """Put a ref right that names no commit, or one of which nothing is here.

    One that names another commit that is here may have been moved on by huggingface_hub itself.
    """
    if is_commit(revision):
        return False
    named = tree.commit_of(revision)
    if named is not None and is_commit(named) and (tree.root / "snapshots" / named).is_dir():
        return False
    tree.move_ref(revision, commit)
    return True


def _mend_torch_link(cache: CacheDir, record: FileRecord) -> bool:
    """Put torch.hub's link right, if the file has one that leads to other bytes or nowhere."""
    link = cache.torch_link(record.origin, record.sha256)
    if link is None:
        return False
    # Of two files with such a name, either may have it: the file that was published last does.
    target = Path(os.path.realpath(link))
    if target.is_file() and cache.torch_link(record.origin, target.name) is not None:
        return False
    cache.link_torch_checkpoint(record.origin, cache.path(record))
    return True


def _leads_to(link: Path, blob: Path) -> bool:
    try:
        return link.samefile(blob)
    except OSError:
        return False
