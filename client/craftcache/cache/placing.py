"""Giving files their names, also where a directory was linked by hand to another file system.

A name is given by a link or a rename, in one step, from staging. Where the target is on another
file system, a copy is made beside it first, hashed as it is written, and that is linked or renamed:
readers see the same one step. Such copies have names that huggingface_hub does not look for; copies
that a kill leaves behind are removed when the next one is made there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.digests import READ_BYTES, Hasher, Stamp
from craftcache.errors import IntegrityError

from .durable import beside, staging_name, sync_directory
from .plain_file import plain

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.digests import HashedFile

__all__ = [
    "LEFTOVER_SECONDS",
    "TreeObstacle",
    "copy_to",
    "link_or_copy",
    "move_away",
    "put_in_place",
    "clear_leftovers",
]

LEFTOVER_SECONDS = 3600.0
"""Age at which a copy without a final name counts as left behind by a kill."""

_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""Errors of link(2) for another file system, or for one that has no links."""


class TreeObstacle(OSError):
    """A file or directory is in the way that is not ours to remove; the message names it."""


def link_or_copy(file: HashedFile, name: Path) -> HashedFile:
    """Give a verified file another name.

    Returns:
        The file under that name, with the stamp that it has there.

    Raises:
        FileExistsError: Something has that name.
        IntegrityError: The file was changed while it was copied.
        OSError: It cannot be had; names the directory.
    """
    try:
        return file.named(name, _link)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    return copy_to(file, name)


def _link(path: Path, name: Path) -> None:
    # link(2) would give a second name to a link itself.
    os.link(os.path.realpath(path) if path.is_symlink() else path, name)


def copy_to(file: HashedFile, name: Path) -> HashedFile:
    """Make a copy of a verified file under another name, in one step; see link_or_copy."""
    if os.path.lexists(name):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name))
    clear_leftovers(name.parent)
    copy = beside(name)
    try:
        copied = _copied(file, copy)
        _give_name(copy, name)
    except OSError as error:
        if error.filename is None:  # of a write
            raise OSError(error.errno, error.strerror, str(name.parent)) from error
        raise
    finally:
        copy.unlink(missing_ok=True)
    return replace(copied, path=name)


def put_in_place(file: HashedFile, name: Path, *, staging: Path) -> HashedFile:
    """Give a verified file a name in place of whatever has it, in one step; see link_or_copy."""
    staged = link_or_copy(file, staging / staging_name())
    try:
        os.replace(staged.path, name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        staged = link_or_copy(file, beside(name))
        os.replace(staged.path, name)
    finally:
        staged.path.unlink(missing_ok=True)
    return replace(staged, path=name)


def move_away(path: Path, aside: Path) -> Path:
    """Take ``path``, whatever it is, out of the way; returns where it is now.

    Raises:
        OSError: It is where it was.
    """
    try:
        os.rename(path, aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return aside
    if stat.S_ISREG(path.lstat().st_mode):
        try:
            shutil.copyfile(path, aside)
        except OSError:  # the disk does not give its bytes, or there is no room for them
            aside.unlink(missing_ok=True)
        else:
            path.unlink()
            return aside
    kept = beside(path)
    os.rename(path, kept)
    return kept


def _copied(file: HashedFile, copy: Path) -> HashedFile:
    """A durable copy of a verified file, hashed as it was written."""
    hasher = Hasher()
    with open(file.path, "rb", opener=plain) as source, open(copy, "xb") as target:
        os.fchmod(target.fileno(), stat.S_IMODE(os.fstat(source.fileno()).st_mode))
        while data := source.read(READ_BYTES):
            target.write(data)
            hasher.update(data)
        target.flush()
        os.fsync(target.fileno())
        stamp = Stamp.of(os.fstat(target.fileno()))
    if hasher.digests().sha256 != file.digests.sha256:
        raise IntegrityError(
            f"{file.path} was changed after it was verified",
            hint="Nothing of it was published; try again",
            retryable=True,
        )
    return replace(file, stamp=stamp)


def _give_name(copy: Path, name: Path) -> None:
    try:
        os.link(copy, name)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _rename_to_free(copy, name)
    sync_directory(name.parent)


def _rename_to_free(copy: Path, name: Path) -> None:
    """The same as link(2), for a file system without links: an existing file stays.

    A lock of the directory keeps other processes of ours from making the name between the check
    and the rename. It is held for that long only, and no other lock is taken inside.
    """
    descriptor = os.open(name.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.lexists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name))
        os.rename(copy, name)
    finally:
        os.close(descriptor)


def clear_leftovers(directory: Path) -> None:
    """Remove the copies in a directory that a kill left without a final name."""
    too_old = time.time() - LEFTOVER_SECONDS
    with contextlib.suppress(OSError):
        for path in directory.glob(".craftcache-*.tmp"):
            if path.lstat().st_mtime < too_old:
                path.unlink()
