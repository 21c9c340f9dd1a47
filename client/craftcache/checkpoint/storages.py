"""The storages that tensors lie in."""

from __future__ import annotations

from typing import Final

import torch
from torch.multiprocessing.reductions import StorageWeakRef  # it has no other home

__all__ = ["PLAIN_TENSORS", "is_whole", "storage_of"]

PLAIN_TENSORS: Final = (torch.Tensor, torch.nn.Parameter)
"""Types of tensors of torch's own: subclasses may do anything with a copy, and have no storage."""


def is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor is all of its storage, in order."""
    return tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()


def storage_of(tensor: torch.Tensor) -> StorageWeakRef:
    """The storage that a tensor lies in, held weakly.

    Two are equal if their tensors share one. A storage's own object tells less: torch 2.1 makes a
    new one at each look.
    """
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
