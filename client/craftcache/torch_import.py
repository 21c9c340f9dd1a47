"""The first import of torch, if it is installed, without its warnings about optional packages."""

from __future__ import annotations

import sys
import warnings

from .errors import CraftcacheError

__all__ = ["import_torch", "require_torch"]

_NO_NUMPY = "Failed to initialize NumPy"
"""How torch says, once in a process, that numpy is not there or too new. Nothing here uses it, and
a worker's log is not the place to say it at each start."""


def import_torch() -> bool:
    """Import torch if nobody has, without its warning about numpy; returns whether there is one.

    Raises:
        ImportError: It is there and cannot be imported.
    """
    if sys.modules.get("torch") is not None:
        return True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _NO_NUMPY, UserWarning)
            import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return False
    return True


def require_torch() -> None:
    """Import torch for who needs tensors.

    Raises:
        CraftcacheError: It is not installed.
        ImportError: It is there and cannot be imported.
    """
    if not import_torch():
        raise CraftcacheError(
            "torch is not installed here, and tensors need it",
            hint="pip install 'craftcache[torch]'",
        )
