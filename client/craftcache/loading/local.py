"""Local files, which the worker opens itself."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from craftcache.cache.opened import FileInfo, OpenFile
from craftcache.errors import AccessDenied, NotFound
from craftcache.limits import limit_reached
from craftcache.wire import Loaded

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from craftcache.sources import LocalDirectory, LocalFile

__all__ = ["open_local", "resolve_local"]

_LEADS_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def open_local(source: LocalFile | LocalDirectory, paths: Iterable[Path]) -> Loaded:
    """Open local files of a source.

    Raises:
        NotFound: One of them does not exist or is no file.
        AccessDenied: This process may not read one of them.
        ResourceLimit: This process may not have so many files open.
    """
    return Loaded(str(source), "", tuple(map(_open_file, paths)), "local")


def resolve_local(path: Path) -> Path:
    """``path``, which must be a file.

    Raises:
        NotFound: There is no file at the path.
    """
    if not path.is_file():
        raise _missing(path)
    return path


def _open_file(path: Path) -> OpenFile:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        raise AccessDenied(
            "this process may not read the file",
            source=str(path),
            hint="Change the file's permissions",
        ) from error
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            raise _missing(path) from error
        if reached := limit_reached(error, str(path)):
            raise reached from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _missing(path)
    # Not mapped: if its owner truncates it, an access to the map would kill the process.
    return OpenFile(FileInfo(path.name, status.st_size, str(path)), descriptor, mapped=False)


def _missing(path: Path) -> NotFound:
    return NotFound(
        "no such file",
        source=str(path),
        hint="An export directory holds state_dict.bin and compression_state_dict.bin",
    )
