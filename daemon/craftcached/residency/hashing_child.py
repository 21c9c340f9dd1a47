"""The process that hashes one large file, as slowly as it is told, and after everybody else.

It is a Python that has found no packages but ours, started with the arguments FILE PARENT: the path
of the file, and the process that it must not outlive, which decides whether everybody else goes
first on the processor too. For each byte on its standard input it hashes a piece, and answers with
the number of the piece's bytes; at the end of the file with 0 and the sha256 in hex; where the file
cannot be read with minus the error's number. Numbers are eight bytes, signed, little-endian.

It is a process and not a thread for the sake of its priority: a thread that waits for its turn on a
busy processor may hold the interpreter's lock meanwhile, and with it the whole daemon.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

from craftcache.digests import Hasher
from craftcached.inspect.confine import die_with_parent

from .page_cache import lower_io_priority, resident_share

__all__ = ["NUMBER_BYTES", "PIECE_BYTES", "go_last", "hash_piece", "main"]

PIECE_BYTES: Final = 4 * 1024 * 1024
"""Bytes hashed at a time: some thousandths of a second of one core."""

NUMBER_BYTES: Final = 8
"""Size of the number that each answer begins with."""

RESIDENT_SHARE: Final = 0.5
"""Share of a piece's pages above which it counts as in memory: less may be what the kernel has just
read ahead."""


def main() -> None:
    """Hash the file that the command line names."""
    file, parent = sys.argv[1:]
    die_with_parent(int(parent))
    lower_io_priority()
    hasher, buffer, position = Hasher(), bytearray(PIECE_BYTES), 0
    with contextlib.suppress(BrokenPipeError):
        while os.read(0, 1):
            try:
                count = hash_piece(file, position, buffer, hasher)
            except OSError as error:
                os.write(1, _number(-(error.errno or 1)))
                return
            digest = b"" if count else hasher.digests().sha256.encode()
            os.write(1, _number(count) + digest)
            position += count


def hash_piece(
    path: str | os.PathLike[str], position: int, buffer: bytearray, hasher: Hasher
) -> int:
    """Hash the next piece of a file; returns its bytes. What was not in memory does not stay there.

    Args:
        path: The file, which is open only meanwhile.
        position: Where the piece begins, in bytes.
        buffer: As large as a piece; used for reading.
        hasher: Takes it in.

    Raises:
        OSError: It cannot be read.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        share = resident_share(file, position, len(buffer))
        count = os.preadv(file, [buffer], position)
        if count and share is not None and share < RESIDENT_SHARE:
            os.posix_fadvise(file, position, count, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
    hasher.update(memoryview(buffer)[:count])
    return count


def _number(value: int) -> bytes:
    return value.to_bytes(NUMBER_BYTES, "little", signed=True)


def go_last(pid: int) -> None:
    """Let everybody else have the processor before this process, as far as this is allowed.

    Its parent does it, so that its start goes last, too: that takes longer than to hash a piece.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, 19)
