"""The names by which unmodified programs reach a model's files: looked at, and put right.

huggingface_hub's snapshot links and refs, and torch.hub's links, decide which bytes an unmodified
program loads, and none of them has a digest. Nothing here hashes; all of it blocks, and what
changes something runs in the store's turn.
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

__all__ = ["mend_links", "is_led_astray"]


def is_led_astray(cache: CacheDir, key: str, manifest: Manifest) -> bool:
    """Whether mend_links would find something to put right; changes nothing.

    What is being published at this moment may seem so.
    """
    try:
        if cache.manifest_at(key) != manifest:
            return False
        source, present = parse(manifest.source), _present(cache, manifest)
        if not isinstance(source, HubSource):
            return any(_is_torch_link_wrong(cache, record) for record in present)
        tree = cache.hub_tree(source.repo_id)
        if present and _is_ref_wrong(tree, source.revision):
            return True
        return any(not _is_pointer_right(cache, tree, manifest, record) for record in present)
    except OSError:  # mend_links says what it is
        return True


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
    source, present = parse(manifest.source), _present(cache, manifest)
    if not isinstance(source, HubSource):
        return [record for record in present if _mend_torch_link(cache, record)]
    tree = cache.hub_tree(source.repo_id)
    mended = [record for record in present if _mend_pointer(cache, tree, manifest, record)]
    if present and not mended and _mend_ref(tree, source.revision, manifest.revision):
        mended = present[:1]
    return mended


def _present(cache: CacheDir, manifest: Manifest) -> list[FileRecord]:
    """The files that are there; none of those that another daemon keeps: its links are its own."""
    if any(map(cache.is_owners, manifest.files)):
        return []
    return [record for record in manifest.files if os.path.exists(cache.path_text(record))]


def _is_pointer_right(
    cache: CacheDir, tree: HubTree, manifest: Manifest, record: FileRecord
) -> bool:
    """Whether a snapshot's link leads to the file."""
    pointer = tree.pointer(manifest.revision, record.filename)
    return _leads_to(pointer, cache.path(record))


def _mend_pointer(cache: CacheDir, tree: HubTree, manifest: Manifest, record: FileRecord) -> bool:
    """Put a snapshot's link right; returns whether that was needed."""
    if _is_pointer_right(cache, tree, manifest, record):
        return False
    tree.link_snapshot(manifest.revision, {record.filename: cache.path(record).name})
    return True


def _is_ref_wrong(tree: HubTree, revision: str) -> bool:
    """Whether a ref names no commit, or one of which nothing is here.

    One that names another commit that is here may have been moved on by huggingface_hub itself.
    """
    if is_commit(revision):
        return False
    named = tree.commit_of(revision)
    return not (
        named is not None and is_commit(named) and (tree.root / "snapshots" / named).is_dir()
    )


def _mend_ref(tree: HubTree, revision: str, commit: str) -> bool:
    """Put a ref right; returns whether that was needed."""
    if not _is_ref_wrong(tree, revision):
        return False
    tree.move_ref(revision, commit)
    return True


def _is_torch_link_wrong(cache: CacheDir, record: FileRecord) -> bool:
    """Whether torch.hub's link, where the file has one, leads to other bytes or nowhere."""
    link = cache.torch.path(record.origin, record.sha256)
    if link is None:
        return False
    # Of two files with such a name, either may have it: the file that was published last does.
    target = Path(os.path.realpath(link))
    return not (target.is_file() and cache.torch.path(record.origin, target.name) is not None)


def _mend_torch_link(cache: CacheDir, record: FileRecord) -> bool:
    """Put torch.hub's link right; returns whether that was needed."""
    if not _is_torch_link_wrong(cache, record):
        return False
    cache.torch.link(record.origin, cache.path(record))
    return True


def _leads_to(link: Path, blob: Path) -> bool:
    try:
        return link.samefile(blob)
    except OSError:
        return False
