"""Manifests that cannot be read any more: written again where they are known, or set aside."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import Manifest

    from .store import Store

__all__ = ["quarantine_manifest", "restore_manifest"]


async def restore_manifest(store: Store, key: str, manifest: Manifest) -> bool:
    """Write a manifest whose file was damaged; False if it is not any more."""

    def restore() -> bool:
        is_damaged = _is_damaged(store.cache, key)
        if is_damaged:
            store.cache.write_manifest_at(key, manifest)
        return is_damaged

    return await store.exclusively(restore)


async def quarantine_manifest(store: Store, key: str) -> str | None:
    """Move a damaged manifest to quarantine.

    Returns:
        Its place there, as shown to people; None if it is not damaged any more.
    """

    def set_aside() -> Path | None:
        path = store.cache.manifest_path(key)
        return store.cache.set_aside(path) if _is_damaged(store.cache, key) else None

    quarantined = await store.exclusively(set_aside)
    return None if quarantined is None else store.cache.shown(quarantined)


def _is_damaged(cache: CacheDir, key: str) -> bool:
    """Whether there is a manifest that cannot be read; asked in the turn of who mends it."""
    is_there = os.path.lexists(cache.manifest_path(key))
    return is_there and cache.manifest_at(key) is None
