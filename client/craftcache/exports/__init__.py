"""From a training run to the Hub: make an export, check it, publish it.

    make      what AudioCraft's own export functions write, as a pair, in one step
    check     whether AudioCraft can load a directory, and what it would get
    publish   checked, uploaded, pinned

For the user's own files, in the user's own process; no daemon is needed.
"""

from .check import Checked, CheckedPart, check_export
from .make import make_export
from .publish import Published, publish_export

__all__ = [
    "Checked",
    "CheckedPart",
    "check_export",
    "make_export",
    "Published",
    "publish_export",
]
