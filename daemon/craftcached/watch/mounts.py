"""The file systems on which inotify reports every change: those of this machine alone."""

from __future__ import annotations

import os

__all__ = ["file_system_type", "is_network"]

NETWORK_TYPES = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "gfs2", "gpfs"),
        *("lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs"),
        *("virtiofs", "wekafs"),
    }
)


def file_system_type(path: str) -> str:
    """The type of the file system that ``path`` is on, as the kernel names it; empty if unknown.

    Raises:
        OSError: There is no such path.
    """
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                head, _, tail = line.partition(" - ")
                if head.split(" ", 3)[2] == number:
                    return tail.split(" ", 1)[0]
    except OSError:
        pass
    return ""


def is_network(kind: str) -> bool:
    """Whether another machine, or a process behind the kernel, may change files there."""
    return kind in NETWORK_TYPES or kind == "fuse" or kind.startswith("fuse.")
