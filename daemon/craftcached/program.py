"""What the daemon and the service of a GPU do alike when they start as programs."""

from __future__ import annotations

import logging
import resource

from .systemd import JournalFormatter

__all__ = ["STDERR", "log_to", "raise_limit_of_files"]

STDERR = 2

MAX_FILES = 65536
"""Open at once, as the unit allows."""


def raise_limit_of_files() -> None:
    """Allow this process as many open files as it may allow itself; see doctor's OPEN_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def log_to(handler: logging.Handler, level: str, *, for_journal: bool) -> None:
    """Have the program's log written by a handler, of our own packages from ``level`` on."""
    if for_journal:
        handler.setFormatter(JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    # What libraries say of themselves shows whole URLs, headers and statements.
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for ours in ("craftcached", "craftcache"):
        logging.getLogger(ours).setLevel(level.upper())
