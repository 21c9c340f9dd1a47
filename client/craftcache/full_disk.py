"""What a full disk lacks: bytes, room for more files, or this user's share of either."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from .amounts import size_text
from .errors import StorageFull

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "FEW_INODES",
    "FULL",
    "MORE_INODES",
    "NO_INODES",
    "free_bytes",
    "free_inodes",
    "storage_full",
]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a write fails with on a disk that is full."""


FEW_INODES = 16
"""With so few left, and bytes in plenty, it is they that gave out: what failed was cleared away."""

NO_INODES = "has room for no more files: all its inodes are in use"
MORE_INODES = "Remove files there, however small, or make the file system with more inodes"
"""What is said of a file system with so few, and what to do."""


def free_bytes(directory: Path) -> int:
    """Bytes that the file system of ``directory`` has left for this user."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def free_inodes(directory: Path) -> int | None:
    """Files that the file system of ``directory`` has room for; None where it counts none."""
    status = os.statvfs(directory)
    return status.f_favail if status.f_files > 0 else None


def storage_full(
    directory: Path,
    needed: int,
    *,
    source: str | None = None,
    error: OSError | None = None,
    free: int | None = None,
    least: int = 0,
) -> StorageFull:
    """What the user is told of a file system that lets nothing more be written.

    Args:
        directory: On that file system.
        needed: Bytes that were to be written.
        source: As the error names it.
        error: Error that a write failed with; None where no write was tried.
        free: Bytes that are left; None asks the file system.
        least: Least value of ``missing_bytes`` in the error, if bytes are what is missing.
    """
    try:
        left = free_bytes(directory) if free is None else free
        inodes = free_inodes(directory)
    except OSError:
        left, inodes = free or 0, None
    if inodes is None:
        inodes = FEW_INODES
    missing = max(0, needed - left)
    is_refused = error is not None and error.errno == errno.ENOSPC
    lacks_inodes = is_refused and (inodes == 0 or (not missing and inodes < FEW_INODES))
    hint = "Free some space, or remove a model with craftcache rm"
    if lacks_inodes:
        what, hint = NO_INODES, MORE_INODES
        missing = least = 0
    elif missing:
        what = f"lacks {size_text(missing)}"
    elif error is not None and error.errno == errno.EDQUOT:
        what = "has no more room for this user, whose quota is used up"
        hint = "Raise the quota of the user that writes there, or remove what it has"
    elif error is not None:
        what = f"is full, though it reports {size_text(left)} free"
        hint = "Look for a limit on it: a project quota, a reserve, another disk below it"
    else:
        what = "is full"
    return StorageFull(
        f"the file system of {directory} {what}",
        missing_bytes=max(missing, least),
        source=source,
        hint=hint,
    )
