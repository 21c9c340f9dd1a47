"""What the daemon and the service of a GPU do alike when they start as programs."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import resource
import sys
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError
from craftcache.inherited import put_right

from .log_writer import LogWriter
from .systemd import JournalFormatter, JournalSocket, is_journal

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["running_program"]

log = logging.getLogger("craftcached")

STDERR = 2

MAX_FILES = 65536
"""Open at once, as the unit allows."""


@contextlib.contextmanager
def running_program(
    level: str, *, failing: str, expected: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """A context for the life of a program: with its log, and ended with one line on a failure.

    What the process inherited is put right, and a fault of the interpreter says where it was, as
    the abort by a service manager's watchdog does.

    Args:
        level: From which level on our own packages log to stderr, or to the journal behind it.
        failing: What the line says that the program does on an error: it cannot start, or ended.
        expected: Errors, beside those of the tree and of the system, that one line explains.

    Raises:
        SystemExit: The program failed; the log says why.
    """
    explained: tuple[type[Exception], ...] = (CraftcacheError, OSError, *expected)
    put_right()
    _raise_limit_of_files()
    faulthandler.enable(STDERR)
    is_logging_to_journal = is_journal(STDERR, os.environ)
    with contextlib.ExitStack() as log_end:
        journal = log_end.enter_context(JournalSocket()) if is_logging_to_journal else None
        writer = log_end.enter_context(LogWriter(STDERR, journal=journal))
        _log_to(writer, level, for_journal=is_logging_to_journal)
        try:
            yield
        except explained as error:
            log.error("%s: %s", failing, error)  # noqa: TRY400  # the sentence says it all
            sys.exit(1)
        except Exception:
            log.exception("ended by a fault of its own")  # where nobody need read it
            sys.exit(1)


def _raise_limit_of_files() -> None:
    """Allow this process as many open files as it may allow itself; see doctor's OPEN_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _log_to(handler: logging.Handler, level: str, *, for_journal: bool) -> None:
    """Have the program's log written by a handler, of our own packages from ``level`` on."""
    if for_journal:
        handler.setFormatter(JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    # What libraries say of themselves shows whole URLs, headers and statements.
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for ours in ("craftcached", "craftcache"):
        logging.getLogger(ours).setLevel(level.upper())
