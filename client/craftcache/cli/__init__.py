"""The command line: ``craftcache``.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 75 a retry
may help. What is heavy (torch, rich, httpx) is imported by the command that needs it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from craftcache.inherited import put_right, unwind_on_sigterm

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line, by default this process's own, and exit.

    Signals are put right before the commands are imported, which takes a while on a busy machine:
    without that, the first process of a container would not even hear SIGTERM.
    """
    put_right()
    unwind_on_sigterm()
    try:
        from .app import main as commands
    except KeyboardInterrupt:
        sys.exit("Aborted!")  # as click has it
    commands(arguments)
