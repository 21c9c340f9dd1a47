"""Watches directories for writes to the files in them, through whatever descriptor they come."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Writes"]

_IN_MODIFY = 0x2
_IN_CLOSE_WRITE = 0x8
_HEADER = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Writes:
    """The files of some directories that were written to, or closed after opening for writing.

    A context manager; the directories must exist when it is entered.
    """

    def __init__(self, directories: Iterable[Path]) -> None:
        self._directories = tuple(directories)
        self._descriptor = -1

    def __enter__(self) -> Self:
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        for directory in self._directories:
            watched = _libc.inotify_add_watch(
                self._descriptor, os.fsencode(directory), _IN_MODIFY | _IN_CLOSE_WRITE
            )
            assert watched >= 0, os.strerror(ctypes.get_errno())
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def names(self) -> set[str]:
        """The names of files written to since the last call."""
        found: set[str] = set()
        while True:
            try:
                events = os.read(self._descriptor, 64 * 1024)
            except BlockingIOError:
                return found
            while events:
                _, _, _, length = _HEADER.unpack_from(events)
                name = events[_HEADER.size : _HEADER.size + length]
                found.add(os.fsdecode(name.rstrip(b"\0")))
                events = events[_HEADER.size + length :]
