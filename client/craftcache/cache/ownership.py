"""Files that somebody else may write to, made such that nobody else may."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from typing import TYPE_CHECKING

from .durable import beside
from .placing import clear_leftovers

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_ours"]

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_ours(path: Path, *, mode: int) -> None:
    """Let nobody but this user write to a file, before it is hashed and believed.

    A mount that gave it to a group (Kubernetes' fsGroup) is answered by its mode, where the file is
    this user's and nobody has it open for writing. Else a copy takes its place; who has the old
    file open keeps that. The copy is made beside it, for its directory may have been linked by hand
    to another file system.

    Args:
        path: Links are followed where the mode is enough; a copy takes the place of a link.
        mode: Permission bits of a copy.

    Raises:
        OSError: It is as it was.
    """
    if _close_to_others(path):
        return
    clear_leftovers(path.parent)
    staged = beside(path)
    try:
        shutil.copyfile(path, staged)
        os.chmod(staged, mode)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def _close_to_others(path: Path) -> bool:
    """Take the right to write from all others; False where that is not enough."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
            return False
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~_OTHERS_WRITE)
        return not _is_open_for_writing(descriptor)
    finally:
        os.close(descriptor)


def _is_open_for_writing(descriptor: int) -> bool:
    """Whether somebody may write to a file whatever its mode is now; True where nobody can say."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return True
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
