"""What an index is made of, and how much of it there may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Index",
    "InvalidIndex",
    "ITEM_BYTES",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_DIMENSIONS",
    "MAX_ELEMENTS",
    "MAX_TENSORS",
    "Node",
    "Scalar",
    "Storage",
    "Tensor",
    "VERSION",
    "contiguous_stride",
]

VERSION: Final = 1
"""The version of the format that this release writes."""

MAX_BYTES: Final = 64 * 1024 * 1024
"""Longest index that is read, in bytes."""

MAX_TENSORS: Final = 100_000
"""Most tensors and most storages in one index; the largest AudioCraft model has 600."""

MAX_DEPTH: Final = 64
"""Deepest nesting of containers in a tree."""

MAX_ELEMENTS: Final = 2**62
"""Bound on a tensor's elements, so that torch's 64-bit arithmetic cannot overflow."""

MAX_DIMENSIONS: Final = 64
"""Most sizes in one shape."""

ITEM_BYTES: Final[dict[str, int]] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "complex32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""The dtypes that an index may hold, by their names in torch, with their size in bytes."""

Scalar: TypeAlias = "bool | int | float | str | None"
"""A plain value of a checkpoint."""

Node: TypeAlias = "Scalar | list[Any]"
"""A node of the tree, as JSON has it."""


class InvalidIndex(ValueError):
    """The bytes are no index of this version, or it points outside its file."""


class Storage(NamedTuple):
    """The place of one storage's bytes in the file.

    Attributes:
        offset: Offset of the first byte, from the start of the file.
        nbytes: Number of bytes.
    """

    offset: int
    nbytes: int


class Tensor(NamedTuple):
    """One tensor as a view of a storage.

    Attributes:
        dtype: Its name in the module torch; a key of ITEM_BYTES.
        storage: Number of its storage.
        shape: Its sizes.
        stride: Its strides in elements; None if contiguous and all of its storage.
        offset: Offset of its first element in the storage, in elements.
        requires_grad: Whether torch records gradients of it.
        is_parameter: Whether it is a torch.nn.Parameter.
    """

    dtype: str
    storage: int
    shape: Sequence[int]
    stride: Sequence[int] | None = None
    offset: int = 0
    requires_grad: bool = False
    is_parameter: bool = False


@dataclass(frozen=True, slots=True)
class Index:
    """What a checkpoint's file holds; the module's docstring defines each part.

    Attributes:
        file_size: Bytes of the file.
        format: The container that torch.save wrote.
        reason: Why only torch can load the file exactly, or None where the index says it all.
        storages: In the order of the file.
        tensors: By number.
        tree: The checkpoint's objects; with a reason only its plain values.
    """

    file_size: int
    format: Literal["zip", "legacy"]
    reason: str | None
    storages: Sequence[Storage]
    tensors: Sequence[Tensor]
    tree: Node

    def value(self, key: str) -> Scalar:
        """The plain value that the checkpoint's top-level dict has under ``key``, or None."""
        if not isinstance(self.tree, list) or self.tree[0] not in ("d", "o"):
            return None
        _, keys, values, *_ = self.tree
        if key not in keys or isinstance(values, int):
            return None
        value = values[keys.index(key)]
        return None if isinstance(value, list) else value

    @property
    def pretrained(self) -> str | None:
        """The model that a codec checkpoint refers to instead of holding weights, or None."""
        value = self.value("pretrained")
        return value if isinstance(value, str) else None


def contiguous_stride(shape: Sequence[int]) -> list[int]:
    """The stride that torch gives a contiguous tensor of this shape."""
    stride: list[int] = []
    step = 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return stride[::-1]
