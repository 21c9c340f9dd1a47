"""All that can be observed of loaded tensors, in one digest."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested containers, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)


def fingerprint(value: Any) -> str:
    """A digest of values, nesting, types and storages, of which those are equal that are shared."""
    digest = hashlib.sha256()
    storages: dict[int, int] = {}
    _add(digest, value, storages)
    return digest.hexdigest()


def _add(digest: Any, value: Any, storages: dict[int, int]) -> None:
    digest.update(type(value).__name__.encode())
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        number = storages.setdefault(storage.data_ptr(), len(storages)) if storage.nbytes() else -1
        facts = (value.dtype, tuple(value.shape), value.stride(), value.storage_offset())
        more = (storage.nbytes(), number, value.requires_grad, value.is_leaf)
        digest.update(repr((facts, more)).encode())
        flat = value.detach().cpu().contiguous().view(-1)
        if flat.numel():
            digest.update(bytes(flat.view(torch.uint8).numpy().data))
    elif isinstance(value, dict):
        for key, each in value.items():
            digest.update(repr(key).encode())
            _add(digest, each, storages)
    elif isinstance(value, list | tuple):
        for each in value:
            _add(digest, each, storages)
    else:
        digest.update(repr(value).encode())
