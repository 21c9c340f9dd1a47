"""Indexes of checkpoints for tests that need no torch."""

from __future__ import annotations

from craftcache.checkpoint.index import Index, dump

__all__ = ["index_without_tensors"]


def index_without_tensors(file_size: int) -> bytes:
    """The index of some file of that size, which leaves it to torch."""
    return dump(Index(file_size, "zip", "a test", (), (), ["d", [], []]))
