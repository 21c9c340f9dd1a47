"""What our own processes, the daemon and the commands, inherit, put right before anything else.

A library leaves its process as it is; a program of ours may not rely on who started it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from typing import NoReturn

__all__ = ["put_right", "unwind_on_sigterm"]

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
"""Names and modes of the standard streams, by their descriptors."""

_KILLED_BY = 128
"""Added to a signal's number, the exit status of what it ended, as shells have it."""


def put_right() -> None:
    """Make of what this process inherited what a program expects; call it first.

    - Standard input, output and error that are closed lead to /dev/null. Otherwise the next file
      that is opened, a socket or a checkpoint, is what libraries write their errors to.
    - SIGCHLD has its default effect: where it is ignored, nobody learns how a child ended.
    - No signal is blocked: one that is would not end the process.
    - SIGTERM ends it, also where it was ignored, and also the first process of a container, for
      which the kernel has no default effect.

    SIGINT that is ignored stays so: a shell that starts a command in the background, or nohup,
    means that an interrupt at the terminal is not for it.
    """
    for descriptor in range(len(_STREAMS)):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python has none of them where they were closed when it started.
    for descriptor, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    if threading.current_thread() is not threading.main_thread():
        return  # a program that calls us has its own signals
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN):
        signal.signal(signal.SIGTERM, _end if os.getpid() == 1 else signal.SIG_DFL)


def unwind_on_sigterm() -> None:
    """Let SIGTERM end this process as an interrupt does: what is half done is taken away first.

    Its exit status is that of a process which the signal ended. A second one ends it at once. Call
    it after ``put_right``, before anything else registers what is to be done at the end.
    """
    if threading.current_thread() is threading.main_thread():
        atexit.register(_end_as_signalled)  # the last thing that is done
        signal.signal(signal.SIGTERM, _unwind)


_received: list[int] = []
"""The signal that ends this process, once there is one."""


def _unwind(number: int, _frame: object) -> NoReturn:
    _received.append(number)
    signal.signal(number, _end if os.getpid() == 1 else signal.SIG_DFL)
    sys.exit(_KILLED_BY + number)


def _end_as_signalled() -> None:
    for number in _received:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os.kill(os.getpid(), number)


def _end(number: int, _frame: object) -> None:
    os._exit(_KILLED_BY + number)  # at once and whatever runs, as the default effect is
