"""Whether anybody has a file open, asked of the kernel by a lease.

A write lease is granted only on a file that nobody else has open or mapped, in any process and in
any mount namespace, descriptors in flight over a socket included.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["is_in_use"]


def is_in_use(path: Path) -> bool | None:
    """Whether anybody has the file open or mapped; None where leases do not work.

    They work on local file systems, for files of this process's own user, and for root on all.

    Raises:
        FileNotFoundError: There is no such file.
    """
    # To open a pipe would wait for its writer; of a regular file O_NONBLOCK changes nothing.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        # Who opens the file in the moment that the lease is held waits for its end, and the
        # holder gets a signal: one that is ignored by default, instead of SIGIO, which kills.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    else:
        return False
    finally:
        os.close(descriptor)
