"""The storages that tensors lie in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.multiprocessing.reductions import StorageWeakRef  # it has no other home

if TYPE_CHECKING:
    import torch

__all__ = ["is_whole", "storage_of"]


def is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor is all of its storage, in order."""
    return tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()


def storage_of(tensor: torch.Tensor) -> StorageWeakRef:
    """The storage that a tensor lies in, held weakly.

    Two are equal if their tensors share one. A storage's own object tells less: torch 2.1 makes a
    new one at each look.
    """
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
