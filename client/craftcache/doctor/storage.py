"""The cache directory: whether it can be read, believed, and filled further."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from craftcache.amounts import size_text
from craftcache.cache.directory import CacheDir
from craftcache.config import choose_cache_dir, choose_map
from craftcache.file_maps import remote_file_system
from craftcache.full_disk import FEW_INODES, MORE_INODES, NO_INODES, free_inodes

from .finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["check"]

LARGE_EXPORT = 7_000_000_000
"""Bytes that the largest published models take."""


def check(cache_dir: Path | None) -> Iterator[Finding]:
    """Look at the cache directory and at its file system."""
    cache = CacheDir(choose_cache_dir(cache_dir))
    if not cache.root.is_dir():
        yield _absent(cache.root)
        return
    yield _check_access(cache)
    yield _check_space(cache.root)
    yield _check_maps(cache.root)


def _absent(root: Path) -> Finding:
    """What is in the place of a cache directory."""
    message, remedy = f"{root} does not exist", "Start the daemon, which makes it"
    if os.path.lexists(root):
        remedy = "Move it away"
        message = f"{root} is a file, not a directory"
        if root.is_symlink() and not root.exists():
            message = f"{root} is a link to {os.readlink(root)}, which does not exist"
    elif obstacle := next((each for each in root.parents if each.is_file()), None):
        message, remedy = f"{root} cannot exist: {obstacle} is a file", "Move that away"
    return Finding("cache directory", "problem", message, f"{remedy}, or correct cache_dir")


def _check_access(cache: CacheDir) -> Finding:
    root = cache.root
    if not os.access(root, os.R_OK | os.X_OK):
        return Finding(
            "cache directory",
            "warning",
            f"uid {os.geteuid()} may not read {root}: nothing is left when the daemon is away, "
            "and unmodified AudioCraft finds nothing",
            f"chmod 0755 {root}",
        )
    if not cache.is_trusted(root):
        return Finding(
            "cache directory",
            "warning",
            f"{root} may be written by others: files are hashed at each load without the daemon",
            f"chown it to the daemon's user, and chmod go-w {root}",
        )
    return Finding("cache directory", "ok", f"{root}, readable, of a trusted owner")


def _check_space(root: Path) -> Finding:
    inodes = free_inodes(root)
    if inodes is not None and inodes < FEW_INODES:
        return Finding("disk space", "problem", f"{root} {NO_INODES}", MORE_INODES)
    free = shutil.disk_usage(root).free
    shown = f"{size_text(free)} free at {root}"
    if free >= LARGE_EXPORT:
        return Finding("disk space", "ok", shown)
    remedy = "craftcache rm frees models; another disk: drop-ins/another-disk.conf"
    return Finding("disk space", "warning", f"{shown}, less than a large model takes", remedy)


def _check_maps(root: Path) -> Finding:
    """Whether tensors are mapped from there, and why."""
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        remote = None  # said by another check
    else:
        try:
            remote = remote_file_system(descriptor)
        finally:
            os.close(descriptor)
    place = f"{root} is on {remote}" if remote else f"{root} is on a local file system"
    choice = choose_map() or "auto"
    match choice, remote:
        case "always", str():
            return Finding(
                "maps",
                "warning",
                f"{place}, and map is {choice}: tensors are mapped, and a worker ends by SIGBUS, "
                "or hangs, when the file system fails",
                'map = "auto", or keep the cache on a local disk',
            )
        case ("auto", None) | ("always", _):
            return Finding("maps", "ok", f"{place}: tensors are mapped, and shared by all workers")
        case "auto", _:
            return Finding(
                "maps",
                "warning",
                f"{place}: tensors are read, not mapped, so that each worker holds its own copy",
                "Keep the cache on a local disk",
            )
    return Finding("maps", "ok", f"map is {choice}: tensors are read, not mapped")
