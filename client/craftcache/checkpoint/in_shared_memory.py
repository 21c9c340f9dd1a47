"""Tensors in a block of a device's memory that holds a whole file and that all workers share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from .tensors import build_all

if TYPE_CHECKING:
    from craftcache.device.sharing import SharedSpans

    from .index import Index, Storage

__all__ = ["build_shared"]


def build_shared(index: Index, spans: SharedSpans, device: torch.device) -> object:
    """What ``torch.load(file, map_location=device)`` would have returned, without a copy.

    Args:
        index: Index of the file; see why_not_shareable.
        spans: The block that begins with the file's bytes.
        device: The device that it is on.

    Raises:
        NotShared: torch does not take such memory.
    """
    return build_all(index, device, partial(_take, spans, device))


def _take(
    spans: SharedSpans, device: torch.device, storage: Storage, dtype: torch.dtype
) -> torch.Tensor:
    """All of a storage as elements of ``dtype``; its own storage, of exactly that size."""
    if not storage.nbytes:
        return torch.empty(0, dtype=dtype, device=device)
    placed = spans.span(storage.offset, storage.nbytes)
    return torch.empty(0, dtype=dtype, device=device).set_(placed.untyped_storage())
