"""The first import of torch, without its warnings about optional packages."""

from __future__ import annotations

import sys
import warnings

__all__ = ["import_torch_quietly"]

_NO_NUMPY = "Failed to initialize NumPy"
"""How torch says, once in a process, that numpy is not there or too new. Nothing here uses it, and
a worker's log is not the place to say it at each start."""


def import_torch_quietly() -> None:
    """Import torch if nobody has; what it warns of for want of numpy is not shown.

    Raises:
        ImportError: There is no torch.
    """
    if sys.modules.get("torch") is not None:
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _NO_NUMPY, UserWarning)
        import torch  # noqa: F401
