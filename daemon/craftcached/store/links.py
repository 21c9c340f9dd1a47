"""The names by which unmodified programs reach a model's files: looked at, and put right.

huggingface_hub's snapshot links and refs, and torch.hub's links, decide which bytes an unmodified
program loads, and none of them has a digest. Nothing here hashes; all of it blocks, and what
changes something runs under the store's WritersLock.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from craftcache.cache.recorded import contradicted, repositories_at
from craftcache.errors import CraftcacheError
from craftcache.sources import HubSource, is_commit, parse

if TYPE_CHECKING:
    from craftcache.cache.directory import CacheDir
    from craftcache.cache.hub_cache import HubTree
    from craftcache.cache.manifest import FileRecord, Manifest

__all__ = ["is_led_astray", "leads_to", "mend_links"]

_START_ANEW = "craftcache rm {0}, then craftcache warm {0}"


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
        if _is_ref_wrong(cache, source, manifest, present):
            return True
        tree = cache.hub_tree(source.repo_id)
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
        CraftcacheError: Another manifest says otherwise, or what was put right is not right.
        OSError: A link cannot be put right.
        TreeObstacle: A file or directory is in the way.
    """
    if cache.manifest_at(key) != manifest:
        return []
    source, present = parse(manifest.source), _present(cache, manifest)
    if not isinstance(source, HubSource):
        return [record for record in present if _mend_torch_link(cache, record)]
    mended = _mend_pointers(cache, source, manifest, present)
    if _is_ref_wrong(cache, source, manifest, present):
        cache.hub_tree(source.repo_id).move_ref(source.revision, manifest.revision)
        mended = mended or list(manifest.files[:1])
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
    return leads_to(pointer, cache.path(record))


def _mend_pointers(
    cache: CacheDir, source: HubSource, manifest: Manifest, present: list[FileRecord]
) -> list[FileRecord]:
    """Put the links of a snapshot right; returns the files whose links were not."""
    tree = cache.hub_tree(source.repo_id)
    wrong = [rec for rec in present if not _is_pointer_right(cache, tree, manifest, rec)]
    if not wrong:
        return []
    digests = {record.filename: record.sha256 for record in manifest.files}
    if differing := contradicted(cache, source.repo_id, manifest.revision, digests):
        raise CraftcacheError(
            f"two manifests of {source.repo_id} say that {', '.join(differing)} of one commit is "
            "another file",
            source=manifest.source,
            hint=_START_ANEW.format(manifest.source),
        )
    # All of them: where a directory of the snapshot was a link, it is made anew, and empty.
    tree.link_snapshot(
        manifest.revision, {record.filename: cache.path(record).name for record in present}
    )
    for record in present:
        if not _is_pointer_right(cache, tree, manifest, record):
            raise CraftcacheError(
                f"no link of {source.repo_id} can lead to {record.path}",
                source=manifest.source,
                hint=_START_ANEW.format(manifest.source),
            )
    return wrong


def _is_ref_wrong(
    cache: CacheDir, source: HubSource, manifest: Manifest, present: list[FileRecord]
) -> bool:
    """Whether a ref names no commit, one of which nothing is here, or another repository's.

    One that names another commit that is here may have been moved on by huggingface_hub itself.
    Where that commit is known of another repository alone, the two directories may have changed
    places, which is the worse mistake: a fork's ref goes back to what was published here last.
    """
    if is_commit(source.revision) or any(map(cache.is_owners, manifest.files)):
        return False
    tree = cache.hub_tree(source.repo_id)
    named = tree.commit_of(source.revision)
    if named == manifest.revision:
        return False
    if named is None or not is_commit(named) or not (tree.root / "snapshots" / named).is_dir():
        return bool(present)
    known = repositories_at(cache, named)
    return bool(known) and source.repo_id not in known


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


def leads_to(link: Path, blob: Path) -> bool:
    """Whether a link leads to that very file."""
    try:
        return link.samefile(blob)
    except OSError:
        return False
