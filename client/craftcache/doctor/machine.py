"""The kernel, and the limits of the daemon's process."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from craftcache.amounts import counted

from .finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check"]

OPEN_FILES = 8192
"""Each connected worker takes one descriptor, and each answer on its way up to eight."""

LOCKED_BYTES = 7_000_000_000
"""To lock one large model in memory."""

INOTIFY_WATCHES = 8192
INOTIFY_INSTANCES = 16

PIDFD_OPEN = (5, 3)
CACHESTAT = (6, 5)
"""The kernels that brought what inspection needs, and what says how much of a file is in memory."""


def check(pid: int | None) -> Iterator[Finding]:
    """Look at the kernel, and at the daemon's limits where it runs.

    Args:
        pid: Process id of the daemon, from its status; None where it does not answer.
    """
    yield _check_kernel()
    yield _check_inotify()
    if pid is not None:
        yield from _check_limits(pid)


def _check_kernel() -> Finding:
    release = os.uname().release
    numbers = re.match(r"(\d+)\.(\d+)", release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else PIDFD_OPEN
    if version < PIDFD_OPEN:
        return Finding("kernel", "problem", f"Linux {release}", "Linux 5.3 or newer is needed")
    if version < CACHESTAT:
        return Finding(
            "kernel",
            "ok",
            f"Linux {release}; how much of a model is in memory is an estimate before 6.5",
        )
    return Finding("kernel", "ok", f"Linux {release}")


def _check_inotify() -> Finding:
    watches = _sysctl("fs/inotify/max_user_watches")
    instances = _sysctl("fs/inotify/max_user_instances")
    if watches is None or instances is None:
        return Finding("inotify", "ok", "the kernel does not tell its limits here")
    found = f"{counted(watches, 'watch')}, {counted(instances, 'instance')} a user"
    if watches >= INOTIFY_WATCHES and instances >= INOTIFY_INSTANCES:
        return Finding("inotify", "ok", found)
    return Finding(
        "inotify",
        "warning",
        f"{found}: watched export directories may go unnoticed",
        f"sysctl fs.inotify.max_user_watches={INOTIFY_WATCHES} "
        f"fs.inotify.max_user_instances={INOTIFY_INSTANCES * 8}",
    )


def _check_limits(pid: int) -> Iterator[Finding]:
    limits = _soft_limits(pid)
    if files := limits.get("Max open files"):
        message = f"the daemon may have {_shown(files, 'file')} open"
        if files >= OPEN_FILES:
            yield Finding("open files", "ok", message)
        else:
            yield Finding("open files", "warning", message, "LimitNOFILE=65536 in the unit")
    if locked := limits.get("Max locked memory"):
        message = f"the daemon may lock {_shown(locked, 'byte')} of memory"
        remedy = "" if locked >= LOCKED_BYTES else "For pin --lock: LimitMEMLOCK=infinity"
        yield Finding("locked memory", "ok", message, remedy)


def _soft_limits(pid: int) -> dict[str, float]:
    """By their names in /proc; empty where the process cannot be seen."""
    try:
        with open(f"/proc/{pid}/limits", encoding="ascii") as file:
            lines = file.read().splitlines()[1:]
    except OSError:
        return {}
    width = 26  # of the names' column
    return {
        line[:width].strip(): float(line[width:].split()[0].replace("unlimited", "inf"))
        for line in lines
    }


def _shown(limit: float, noun: str) -> str:
    return f"any number of {noun}s" if limit == float("inf") else counted(int(limit), noun)


def _sysctl(name: str) -> int | None:
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
