"""Which checkpoints can be shared in a GPU's memory; needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .index import Index

__all__ = ["why_not_shareable"]

ALIGNMENT: Final = 64
"""Bytes at a multiple of which torch.save has put each storage of a file since torch 1.6; kernels
of a GPU count on 16."""


def why_not_shareable(index: Index | None) -> str | None:
    """The reason why a file cannot be used where it lies in a GPU's memory; None if it can.

    Args:
        index: Its index; None where it has none.
    """
    if index is None:
        return "it has no index"
    if index.reason is not None:
        return f"only torch can read it: {index.reason}"
    if any(storage.nbytes and storage.offset % ALIGNMENT for storage in index.storages):
        return f"its storages do not lie at multiples of {ALIGNMENT} bytes"
    return None
