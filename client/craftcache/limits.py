"""What the process that we live in is not allowed: memory, open files, threads.

A limit that is reached is nobody's fault but the process's own: it is told by its name and its
value, and neither the daemon nor the file is blamed for it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import resource
import threading
from typing import TYPE_CHECKING

from craftcache.amounts import size_text

from .errors import ResourceLimit

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["limit_reached", "limits_named", "no_descriptors_left"]

_TORCHS_WORDS = ("can't allocate memory", "not enough memory")
"""How torch's allocator for the CPU says it, in a RuntimeError."""

DEFAULT_STACK_BYTES = 8 << 20
"""Length of a thread's stack where nothing limits it, as on Linux."""

_NO_THREAD = "can't start new thread"
"""How Python says it, in a RuntimeError."""


@contextlib.contextmanager
def limits_named(source: str | None) -> Iterator[None]:
    """Turn errors that mean a limit of this process into ResourceLimit.

    Args:
        source: Named in errors.

    Raises:
        ResourceLimit: A limit was reached while inside.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        reached = limit_reached(error, source)
        if reached is None:
            raise
        raise reached from error


def limit_reached(error: BaseException, source: str | None = None) -> ResourceLimit | None:
    """The error of ours for one that means a limit of this process; None for any other."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error) if isinstance(error, RuntimeError) else ""
    if number == errno.EMFILE:
        return no_descriptors_left(source)
    if number == errno.ENFILE:
        return ResourceLimit(
            "this machine has as many files open as it allows",
            source=source,
            hint="Close some, or raise it: sysctl fs.file-max",
        )
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _has_any(text, _TORCHS_WORDS):
        return _no_memory_left(source)
    if _NO_THREAD in text and _soft(resource.RLIMIT_AS) != "unlimited" and not _has_stack():
        return _no_memory_left(source)
    if number == errno.EFBIG:
        return _file_too_long(source)
    if _NO_THREAD in text:
        return ResourceLimit(
            f"this user may start no more threads (RLIMIT_NPROC is {_soft(resource.RLIMIT_NPROC)})",
            source=source,
            hint="Raise it: ulimit -u, or the container's limit of processes",
        )
    return None


def no_descriptors_left(source: str | None = None) -> ResourceLimit:
    """The error for a process that has as many files open as it may."""
    return ResourceLimit(
        "this process has as many files open as it may "
        f"(RLIMIT_NOFILE is {_soft(resource.RLIMIT_NOFILE)})",
        source=source,
        hint="Close some, or raise it: ulimit -n, LimitNOFILE= in a unit",
    )


def _no_memory_left(source: str | None) -> ResourceLimit:
    limit = _soft(resource.RLIMIT_AS)
    if limit == "unlimited":
        return ResourceLimit(
            "there is not enough memory for it",
            source=source,
            hint="Use a machine or a container with more, or fewer workers",
        )
    return ResourceLimit(
        f"this process may not have the memory for it (RLIMIT_AS is {size_text(int(limit))})",
        source=source,
        hint="A mapped file counts in full; raise it: ulimit -v, LimitAS= in a unit",
    )


def _file_too_long(source: str | None) -> ResourceLimit:
    limit = _soft(resource.RLIMIT_FSIZE)
    if limit == "unlimited":
        return ResourceLimit(
            "the file system takes no file so long",
            source=source,
            hint="Put the cache directory on another one",
        )
    return ResourceLimit(
        f"this process may not write so long a file (RLIMIT_FSIZE is {size_text(int(limit))})",
        source=source,
        hint="Raise it: ulimit -f, LimitFSIZE= in a unit",
    )


def _has_stack() -> bool:
    """Whether there is address space for one more thread's stack, which a thread begins with."""
    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    length = DEFAULT_STACK_BYTES if limit == resource.RLIM_INFINITY else limit
    try:
        mmap.mmap(-1, threading.stack_size() or length).close()
    except (OSError, ValueError):
        return False
    return True


def _has_any(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)


def _soft(limit: int) -> str:
    soft, _ = resource.getrlimit(limit)
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
