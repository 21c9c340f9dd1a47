"""The confinement of a child, before it reads a file that was not inspected yet.

Weights-only unpickling runs no code of the file's. These limits are for the day on which torch
has a hole, and for files that ask for a terabyte, a day of CPU, or a million dimensions.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
from typing import Final

from .seccomp import NETWORK_CALLS, refuse

__all__ = ["confine", "die_with_parent", "leave_network"]

_DATA_BYTES: Final = 256 * 1024 * 1024
"""Writable memory that a child may take beyond what it inherits with torch."""

_OPEN_FILES: Final = 16

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Be killed when the process ``parent``, which forked this one, ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def leave_network() -> None:
    """Give up privileges to come and the network, for this process and all that it forks.

    It enters an empty network of its own; where a sandbox forbids that, it makes no sockets any
    more. A machine that allows neither still inspects: no file is known that would use the network.
    """
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _libc.unshare(_CLONE_NEWNET) and _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        with contextlib.suppress(OSError):
            refuse(NETWORK_CALLS.get(os.uname().machine, ()))


def confine(*, cpu_seconds: int, file_bytes: int) -> None:
    """Give up all but some memory, files and CPU time.

    Args:
        cpu_seconds: After which SIGXCPU ends this process.
        file_bytes: Beyond which it may write to no file.
    """
    _limit(resource.RLIMIT_DATA, _data_bytes() + _DATA_BYTES)
    _limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)  # SIGKILL, which says less, after
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    _, inherited = resource.getrlimit(kind)
    hard = soft if hard is None else hard
    hard = hard if inherited == resource.RLIM_INFINITY else min(hard, inherited)
    resource.setrlimit(kind, (min(soft, hard), hard))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process now."""
    with open("/proc/self/status", encoding="ascii") as status:
        found = re.search(r"^VmData:\s+(\d+) kB", status.read(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
