"""From what a pickle holds, as descriptions, to the tree and tables of an index."""

from __future__ import annotations

from math import isfinite, prod
from typing import TYPE_CHECKING, Any

from craftcache.checkpoint.index import (
    ITEM_BYTES,
    MAX_DEPTH,
    MAX_TENSORS,
    Storage,
    Tensor,
    contiguous_stride,
)
from craftcache.errors import NotACheckpoint

from .descriptions import Global, Ordered, Other, StorageBytes, TensorView
from .names import DTYPE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from craftcache.checkpoint.index import Node

__all__ = ["Describer", "plain_values"]


class Describer:
    """Describes one checkpoint, and finds out whether an index can say it exactly.

    Args:
        places: Place in the file of each storage, by key.
        aligned: Whether tensors must lie where their elements may be mapped.

    Attributes:
        reason: The first thing found that an index cannot say, or None.
    """

    def __init__(self, places: Mapping[str | int, Storage], *, aligned: bool) -> None:
        self.reason: str | None = None
        self._places = places
        self._aligned = aligned
        self._tensors: list[tuple[TensorView, Storage]] = []
        self._numbers: dict[TensorView, int] = {}
        self._containers: set[int] = set()
        self._count = 0

    def node(self, value: Any, depth: int = 0) -> Node:  # noqa: ANN401  whatever a pickle holds
        """The node of ``value``; its tensors are entered in the tables."""
        kind = type(value)
        if kind is TensorView:
            return self._tensor(value)
        if value is None or kind is bool or kind is int or kind is float or kind is str:
            return self._scalar(value)
        if kind is Global or kind is StorageBytes or kind is Other:
            return self._inexact(_reason(value))
        if id(value) in self._containers:
            return self._inexact("one container is in two places")
        if depth > MAX_DEPTH:
            return self._inexact(f"it is nested deeper than {MAX_DEPTH}")
        if value or kind is not tuple:  # there is but one empty tuple
            self._containers.add(id(value))
        if kind is Ordered:
            keys, values = self._items(value.items, depth)
            unset: Node = ["d", [], []]
            state = value.attributes
            return ["o", keys, values, unset if state is None else self.node(state, depth + 1)]
        if kind is dict:
            return ["d", *self._items(value, depth)]
        return ["l" if kind is list else "t", self._values(value, depth)]

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
        if type(value) is float and not isfinite(value):
            return ["f", str(value)]
        if type(value) is str and not value.isascii() and not _is_text(value):
            return self._inexact("it holds text with half a character")
        return value

    def _tensor(self, tensor: TensorView) -> Node:
        number = self._numbers.get(tensor)
        if number is not None:
            return ["T", number]
        self._count += 1
        if self._count > MAX_TENSORS:
            raise NotACheckpoint(f"it holds more than {MAX_TENSORS} tensors")
        if tensor.oddity is not None:
            return self._inexact(tensor.oddity)
        if tensor.dtype not in ITEM_BYTES:
            return self._inexact(f"it holds a tensor of torch.{tensor.dtype}")
        if tensor.storage.oddity is not None:
            return self._inexact(tensor.storage.oddity)
        place = self._places[tensor.storage.key]
        if self._aligned and place.offset % ITEM_BYTES[tensor.dtype]:
            return self._inexact("a tensor is not aligned in the file")
        number = self._numbers[tensor] = len(self._tensors)
        self._tensors.append((tensor, place))
        return ["T", number]

    def _inexact(self, reason: str) -> Node:
        self.reason = self.reason or reason
        return None


def plain_values(checkpoint: object) -> Node:
    """The tree of those values at the top of a checkpoint that are plain, for its reader."""
    items: Any = checkpoint
    if isinstance(checkpoint, Ordered | Other):
        items = checkpoint.items
    plain = {
        key: value
        for key, value in (items.items() if isinstance(items, dict) else ())
        if type(key) is str and type(value) in (type(None), bool, int, float, str)
    }
    return Describer({}, aligned=True).node(plain)


def _reason(value: Global | StorageBytes | Other) -> str:
    if isinstance(value, Other):
        return value.reason or f"it holds a {value.kind}"
    if isinstance(value, Global):
        is_dtype = value.name.removeprefix("torch.") in DTYPE_BYTES
        return "it holds a torch.dtype" if is_dtype else f"it holds {value.name} itself"
    return "it holds a torch.storage.TypedStorage"


def _is_text(value: str) -> bool:
    """Whether JSON can hold it: of two halves of a character side by side it would make one."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _row(tensor: TensorView, number: int, storage: Storage) -> Tensor:
    shape, stride, offset = list(tensor.shape), list(tensor.stride), tensor.offset
    fills = (
        offset == 0
        and prod(shape) * ITEM_BYTES[tensor.dtype] == storage.nbytes
        and stride == contiguous_stride(shape)
    )
    return Tensor(
        tensor.dtype,
        number,
        shape,
        None if fills else stride,
        offset,
        tensor.requires_grad,
        tensor.is_parameter,
    )
