"""The package's logger, which says nothing where nobody could read it.

Without a handler of the program's, Python writes warnings to standard error. Where that is closed
the write fails, and again when the process ends, which then has exit status 120: a worker that did
its work would count as failed for a warning.
"""

from __future__ import annotations

import io
import logging
import os
import sys

__all__ = ["log"]


def _is_heard(_record: logging.LogRecord) -> bool:
    if log.hasHandlers():
        return True
    try:
        os.fstat(sys.stderr.fileno())
    except io.UnsupportedOperation:  # something else that takes text, as in a notebook
        return True
    except (AttributeError, OSError, ValueError):  # none, or closed
        return False
    return True


log = logging.getLogger("craftcache")
log.addFilter(_is_heard)
