"""Whether a file may be mapped: a map fails with its file system, and takes the process along.

On a network file system the server may go away, or replace the file, while a map of it is in use:
the next access hangs, or ends the process by SIGBUS. What is read instead is this process's own.
Behind FUSE there may be a network as well.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAP_CHOICES", "MapChoice", "may_map", "remote_file_system"]

MapChoice = Literal["auto", "always", "never"]

MAP_CHOICES: tuple[MapChoice, ...] = ("auto", "always", "never")
"""``auto``: mapped but on network and FUSE file systems."""

_REMOTE = {
    0x00006969: "nfs",
    0x0000517B: "smb",
    0xFE534D42: "smb",
    0xFF534D42: "cifs",
    0x5346414F: "afs",
    0x6B414653: "afs",
    0x73757245: "coda",
    0x01021997: "9p",
    0x00C36400: "ceph",
    0x0BD00BD0: "lustre",
    0x01161970: "gfs2",
    0x7461636F: "ocfs2",
    0x47504653: "gpfs",
    0x19830326: "beegfs",
    0x20030528: "orangefs",
    0xAAD7AAEA: "panfs",
    0x65735546: "fuse",
    0x786F4256: "vboxsf",
    0xBACBACBC: "vmhgfs",
}
"""Names of file systems by their magic number, see statfs(2)."""

_STATFS_BYTES = 256
"""More than the kernel writes."""


def may_map(descriptor: int, choice: MapChoice) -> bool:
    """Whether an open file is to be mapped rather than read."""
    if choice == "auto":
        return remote_file_system(descriptor) is None
    return choice == "always"


def remote_file_system(descriptor: int) -> str | None:
    """The name of the file system of an open file or directory, if it is a network's or FUSE.

    None as well where the system does not tell.
    """
    return _REMOTE.get(_magic_number()(descriptor))


@functools.cache
def _magic_number() -> Callable[[int], int]:
    """The function that tells a file system's magic number; 0 where it cannot."""
    if sys.platform != "linux":
        return lambda _: 0
    import ctypes

    try:
        fstatfs = ctypes.CDLL(None).fstatfs
    except (OSError, AttributeError):
        return lambda _: 0
    size = ctypes.sizeof(ctypes.c_long)
    # Made once: ctypes forgets an array's type with its last array, and makes it anew in 50 us.
    Status = ctypes.c_char * _STATFS_BYTES  # noqa: N806  (a type)

    def of(descriptor: int) -> int:
        status = Status()
        if fstatfs(descriptor, status) != 0:
            return 0
        return int.from_bytes(status.raw[:size], sys.byteorder) & 0xFFFFFFFF

    return of
