"""Log lines as the journal reads them from a service's stderr."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["JournalFormatter", "is_journal"]

_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
"""syslog's severities, by the level from which on they apply."""

DEBUG_PRIORITY = 7


class JournalFormatter(logging.Formatter):
    """Marks every line with its priority, those of a traceback too: see sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        """``record`` as one or more lines."""
        mark = f"<{_priority(record.levelno)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


def is_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Whether ``descriptor`` is still the journal's stream, and not redirected elsewhere since."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _priority(level: int) -> int:
    return next((number for start, number in _PRIORITIES if level >= start), DEBUG_PRIORITY)
