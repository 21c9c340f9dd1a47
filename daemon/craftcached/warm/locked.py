"""What a lock asks of a warm: before the first byte, and before anything is published."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.digests import Digest
from craftcache.sources import HubSource

if TYPE_CHECKING:
    from craftcache.locked import LockedRevision

    from .description import DescribedFile, Description, VerifiedFiles

__all__ = ["hold_to_lock", "check_locked"]


def hold_to_lock(description: Description, lock: LockedRevision) -> Description:
    """The description with the lock's digests as promises, where the origin gives no sha256.

    Raises:
        IntegrityError: The origin promises another file than the locked one.
    """
    shown = description.source.shown
    for file in description.files:
        lock.check_promise(file.filename, file.promise, source=shown)
    if isinstance(description.source, HubSource):  # promises sha256 or git-sha1 for each file
        return description
    return replace(description, files=tuple(_held(file, lock) for file in description.files))


def check_locked(files: VerifiedFiles, lock: LockedRevision) -> None:
    """Raise IntegrityError unless the verified files are the locked ones; it names the first."""
    for filename, (verified, _) in files.files.items():
        if filename in lock.names:
            lock.check(filename, verified.digests.sha256, source=files.source.shown)


def _held(file: DescribedFile, lock: LockedRevision) -> DescribedFile:
    locked = lock.file(file.filename)
    if locked is None:
        return file
    promise = replace(file.promise, digest=Digest("sha256", locked.sha256))
    is_current = file.current is not None and file.current.sha256 == locked.sha256
    return replace(
        file,
        remote=replace(file.remote, promise=promise),
        current=file.current if is_current else None,
    )
