"""Opening what should be a plain file of a cache, whatever stands in its place.

Other hands may have put a pipe there: to open one waits for its writer, and to read one for its
bytes, for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["IS_NO_FILE", "plain", "read_plain"]

IS_NO_FILE: Final = frozenset({errno.EISDIR, errno.ENOTSUP, errno.ENXIO})
"""Errors of ``plain`` where something else stands in a file's place; a socket is ENXIO."""


def plain(path: str, flags: int) -> int:
    """An ``opener`` for ``open``: anything but a regular file is an error at once.

    Raises:
        OSError: IS_NO_FILE, or as ``os.open`` does.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    code = errno.EISDIR if stat.S_ISDIR(mode) else errno.ENOTSUP
    raise OSError(code, os.strerror(code) if stat.S_ISDIR(mode) else "It is no file", path)


def read_plain(path: Path, limit: int) -> bytes:
    """The first ``limit`` bytes of a file.

    Raises:
        OSError: See plain.
    """
    with open(path, "rb", buffering=0, opener=plain) as file:
        status = os.fstat(file.fileno())
        return file.read(min(status.st_size, limit)) or b""
