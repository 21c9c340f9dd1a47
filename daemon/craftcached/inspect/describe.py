"""From the objects of a loaded checkpoint to the tree and tables of its index."""

from __future__ import annotations

from collections import OrderedDict
from math import isfinite, prod
from typing import TYPE_CHECKING, Any

import torch

from craftcache.checkpoint.index import (
    ITEM_BYTES,
    MAX_DEPTH,
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_TENSORS,
    Storage,
    Tensor,
    contiguous_stride,
)
from craftcache.errors import NotACheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from craftcache.checkpoint.index import Node

__all__ = ["Describer", "plain_values"]


class Describer:
    """Describes one checkpoint, and finds out whether an index can say it exactly.

    Args:
        place: Where the bytes of a storage lie in the file, or None.

    Attributes:
        reason: The first thing found that an index cannot say, or None.
    """

    def __init__(self, place: Callable[[torch.UntypedStorage], Storage | None]) -> None:
        self.reason: str | None = None
        self._place = place
        self._tensors: list[tuple[torch.Tensor, Storage]] = []
        self._numbers: dict[int, int] = {}
        self._containers: set[int] = set()
        self._count = 0

    def node(self, value: object, depth: int = 0) -> Node:
        """The node of ``value``; its tensors are entered in the tables."""
        if value is None or isinstance(value, bool | int | float | str):
            return self._scalar(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if id(value) in self._containers:
            return self._inexact("one container is in two places")
        if depth > MAX_DEPTH:
            return self._inexact(f"it is nested deeper than {MAX_DEPTH}")
        if value or type(value) is not tuple:  # there is but one empty tuple
            self._containers.add(id(value))
        match value:
            case OrderedDict() if type(value) is OrderedDict:
                keys, values = self._items(value, depth)
                return ["o", keys, values, self.node(vars(value), depth + 1)]
            case dict() if type(value) is dict:
                return ["d", *self._items(value, depth)]
            case list() if type(value) is list:
                return ["l", self._values(value, depth)]
            case tuple() if type(value) is tuple:
                return ["t", self._values(value, depth)]
        return self._inexact(f"it holds a {_name(value)}")

    def tables(self) -> tuple[list[Storage], list[Tensor]]:
        """The storages in the order of the file, and the tensors upon them."""
        storages = sorted({storage for _, storage in self._tensors})
        numbers = {storage: number for number, storage in enumerate(storages)}
        return storages, [_row(tensor, numbers[place], place) for tensor, place in self._tensors]

    def _items(self, items: dict[Any, object], depth: int) -> tuple[list[Node], Node]:
        keys = [self.node(key, depth + 1) for key in items]
        values = self._values(items.values(), depth)
        numbers = [value[1] for value in values if isinstance(value, list) and value[0] == "T"]
        first = numbers[0] if numbers else 0
        if numbers and numbers == list(range(first, first + len(values))):
            return keys, first
        return keys, values

    def _values(self, values: Iterable[object], depth: int) -> list[Node]:
        return [self.node(value, depth + 1) for value in values]

    def _scalar(self, value: bool | float | str | None) -> Node:
        if type(value) not in (type(None), bool, int, float, str):
            return self._inexact(f"it holds a {_name(value)}")
        if isinstance(value, float) and not isfinite(value):
            return ["f", str(value)]
        return value

    def _tensor(self, tensor: torch.Tensor) -> Node:
        number = self._numbers.get(id(tensor))
        if number is not None:
            return ["T", number]
        self._count += 1
        if self._count > MAX_TENSORS:
            raise NotACheckpoint(f"it holds more than {MAX_TENSORS} tensors")
        if (
            len(tensor.shape) > MAX_DIMENSIONS
            or prod(max(n, 1) for n in tensor.shape) > MAX_ELEMENTS
        ):
            raise NotACheckpoint("it holds a tensor of an absurd shape")
        reason = _oddity(tensor)
        if reason is not None:
            return self._inexact(reason)
        storage = self._place(tensor.untyped_storage())
        if storage is None:
            return self._inexact("a tensor's values are not in the file")
        if storage.offset % tensor.itemsize:
            return self._inexact("a tensor is not aligned in the file")
        number = self._numbers[id(tensor)] = len(self._tensors)
        self._tensors.append((tensor, storage))
        return ["T", number]

    def _inexact(self, reason: str) -> Node:
        self.reason = self.reason or reason
        return None


def plain_values(checkpoint: object) -> Node:
    """The tree of those values at the top of a checkpoint that are plain, for its reader."""
    items = checkpoint.items() if isinstance(checkpoint, dict) else ()
    plain = {
        key: value
        for key, value in items
        if type(key) is str and type(value) in (type(None), bool, int, float, str)
    }
    return Describer(lambda _: None).node(plain)


def _oddity(tensor: torch.Tensor) -> str | None:
    """What of a tensor an index cannot say, or None."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or vars(tensor):
        return f"it holds a {_name(tensor)} with more to it than its values"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "it holds a sparse or nested tensor"
    if tensor.device.type != "cpu":
        return "it holds a tensor without values"
    if tensor.dtype not in _DTYPES:
        return f"it holds a tensor of {tensor.dtype}"
    if tensor.is_conj() or tensor.is_neg():
        return "it holds a tensor that is yet to be conjugated or negated"
    if tensor._backward_hooks:  # noqa: SLF001  pickles may carry them; torch has no other name
        return "it holds a tensor with hooks"
    return None


_DTYPES = {getattr(torch, name): name for name in ITEM_BYTES if hasattr(torch, name)}


def _row(tensor: torch.Tensor, number: int, storage: Storage) -> Tensor:
    shape, stride, offset = list(tensor.shape), list(tensor.stride()), int(tensor.storage_offset())
    fills = (
        offset == 0
        and tensor.numel() * tensor.itemsize == storage.nbytes
        and stride == contiguous_stride(shape)
    )
    return Tensor(
        _DTYPES[tensor.dtype],
        number,
        shape,
        None if fills else stride,
        offset,
        tensor.requires_grad,
        isinstance(tensor, torch.nn.Parameter),
    )


def _name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
