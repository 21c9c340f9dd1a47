"""Whether a checkpoint can be loaded safely, for a worker that has no daemon to look at it.

As in the daemon, the reader says so, which calls nothing and needs no torch. What an index cannot
hold it allows where torch 2.13 would load it; where the worker has a torch, that is asked too, for
it may be older, or lack what the checkpoint is made of.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError
from craftcache.torch_import import import_torch

from .reader import read_index
from .recognize import recognized

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["inspect"]


def inspect(path: Path, *, source: str) -> None:
    """Refuse a checkpoint that cannot be loaded safely.

    Args:
        path: The file.
        source: Named in errors.

    Raises:
        UnsafeCheckpoint: Loading it would call something that is not allowed; it is named.
        NotACheckpoint: It is damaged, no checkpoint at all, or nothing that torch here can load.
        MemoryError: This process may not have the memory for describing it.
        ResourceLimit: This process may not have the memory for it.
        OSError: The file could not be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with recognized(fd):
            index = read_index(fd)
        if index.reason is not None and import_torch():
            from . import weights_only

            weights_only.load(fd, map_location="meta", source=source)
    except CraftcacheError as error:
        raise error.about(source) from error
    finally:
        os.close(fd)
