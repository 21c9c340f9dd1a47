"""Snapshots that other tools put into the cache directory, for the setting that evicts them too.

huggingface_hub's own scan says what there is and when it was last read, and its own deletion
removes it. Without the setting nothing here is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING

from .policy import Blob, EvictionCandidate

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from craftcached.store.store import Store

__all__ = ["OTHERS", "remove_others", "survey_others"]

log = logging.getLogger("craftcached")

OTHERS = "others:"
"""Beginning of the key of a snapshot of another tool; its repository and commit follow."""


async def survey_others(
    store: Store, ours: Iterable[EvictionCandidate], *, spared: Collection[str] = ()
) -> list[EvictionCandidate]:
    """The snapshots of which craftcache has no file, as the policy sees them.

    Args:
        store: The published models.
        ours: All models, and superseded revisions.
        spared: Keys of snapshots that are not looked at again.
    """
    known = {(blob.device, blob.inode) for model in ours for blob in model.blobs}
    found = await asyncio.to_thread(_scan, store.cache.root, known)
    return [candidate for candidate in found if candidate.key not in spared]


async def remove_others(store: Store, key: str) -> int:
    """Remove a snapshot of another tool; returns the bytes freed."""
    return await store.exclusively(_remove, store.cache.root, key.rpartition("/")[2])


def _scan(root: Path, known: set[tuple[int, int]]) -> list[EvictionCandidate]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(root).repos
    except CacheNotFound:
        return []
    candidates = []
    for repo in repos:
        for revision in repo.revisions:
            blobs = frozenset(_blobs(file.blob_path for file in revision.files))
            if blobs and not any((blob.device, blob.inode) in known for blob in blobs):
                candidates.append(
                    EvictionCandidate(
                        key=f"{OTHERS}{repo.repo_type}/{repo.repo_id}/{revision.commit_hash}",
                        source=f"{repo.repo_id}@{revision.commit_hash}",
                        blobs=blobs,
                        last_use=max(file.blob_last_accessed for file in revision.files),
                    )
                )
    return candidates


def _blobs(paths: Iterable[Path]) -> Iterable[Blob]:
    from craftcached.in_use import is_in_use

    for path in paths:
        with contextlib.suppress(OSError):  # removed meanwhile
            status = os.stat(path)
            # Where the kernel does not say, as of another user's files, it may well be in use.
            in_use = is_in_use(path) is not False
            yield Blob(status.st_dev, status.st_ino, status.st_size, in_use)


def _remove(root: Path, commit: str) -> int:
    from huggingface_hub import scan_cache_dir

    strategy = scan_cache_dir(root).delete_revisions(commit)
    strategy.execute()
    return strategy.expected_freed_size
