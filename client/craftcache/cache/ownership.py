"""Files that other users may write to, changed so that only this user may."""

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
    """Let only this user write to a file, before it is hashed and trusted.

    If the file is this user's and nobody has it open for writing, its mode is changed, as after a
    mount that made it writable for a group (Kubernetes' fsGroup). Otherwise a copy takes its
    place; processes that have the old file open keep that. The copy is made beside it, as its
    directory may have been linked by hand to another file system.

    Args:
        path: The file. Links are followed if changing the mode suffices; a copy replaces a link.
        mode: Permission bits of a copy.

    Raises:
        OSError: The file is unchanged.
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
    """Take write permission from other users; False if that does not suffice."""
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
    """Whether a process has a file open for writing; True where the kernel cannot say."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return True
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
