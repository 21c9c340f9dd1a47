"""The index of a checkpoint: what its file holds and where, so that nobody need unpickle it.

The daemon writes an index once for each blob, from a confined process; workers map the blob and
build the tensors from the index. An index is one JSON document in ASCII, compact, of version 1::

    {"craftcache_index": 1,
     "file_size": 843325,             bytes of the file that it describes
     "format": "zip",                 torch.save's container: "zip" or "legacy" (before torch 1.6)
     "reason": null,                  or why the file must be loaded by torch (see below)
     "dtypes": ["float16"],           names in the module torch
     "storages": [9600, 2048, ...],   offset and size in bytes of each storage, alternating, in
                                      the order of the file, none overlapping another
     "dtype": [0, 0, ...],            of each tensor: its dtype and its storage by number, and its
     "storage": [0, 1, ...],          shape; it is contiguous and fills its storage, unless
     "shape": [[32, 32], ...],
     "views": [[7, [1, 4], 2, 1]],    a view of the same number gives the stride and offset of its
                                      elements, and flags: 1 requires_grad, 2 torch.nn.Parameter
     "tree": node}

A node is null, a boolean, an integer, a finite float or a string, which stand for themselves, or
an array that begins with its kind::

    ["d", keys, values]               dict; keys is an array of nodes
    ["o", keys, values, attributes]   OrderedDict; attributes is the node of its ``__dict__``
    ["l", values]                     list
    ["t", values]                     tuple
    ["T", n]                          tensor n; two nodes with one number are one object
    ["f", "nan"]                      a float that JSON lacks: "nan", "inf" or "-inf"

``values`` is an array of nodes or, where all of them are tensors numbered in a row, the first of
these numbers: a state dict of 600 tensors is its keys and one integer.

With a ``reason`` the file holds something that an index cannot say exactly (an OmegaConf object,
a sparse tensor, compressed records ...). Then there are no storages and no tensors, the tree is a
dict of the plain values at the top of the checkpoint, and the checkpoint itself is loaded by
torch's weights-only loader.

Readers ignore unknown keys of the document and refuse another version. They trust nothing: an
Index that ``parse`` returned describes only places inside the file, and every number in its tree
is that of a tensor that it lists.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from itertools import chain
from math import inf, nan, prod
from operator import add, lt, mod, mul
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NoReturn, TypeAlias, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

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
    "Storage",
    "Tensor",
    "VERSION",
    "assemble",
    "contiguous_stride",
    "dump",
    "parse",
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

_REQUIRES_GRAD: Final = 1
_PARAMETER: Final = 2

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

_FLOATS: Final[dict[str, float]] = {"nan": nan, "inf": inf, "-inf": -inf}


class InvalidIndex(ValueError):
    """The bytes are no index of this version, or it points outside its file."""


class Storage(NamedTuple):
    """Where the bytes of one storage lie in the file.

    Attributes:
        offset: Of the first byte, from the start of the file.
        nbytes: How many.
    """

    offset: int
    nbytes: int


class Tensor(NamedTuple):
    """One tensor as a view of a storage.

    Attributes:
        dtype: Its name in the module torch; a key of ITEM_BYTES.
        storage: Number of its storage.
        shape: Its sizes.
        stride: In elements; None means contiguous and all of its storage.
        offset: Of its first element in the storage, in elements.
        requires_grad: What torch calls so.
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


def dump(index: Index) -> bytes:
    """The index as the bytes that ``parse`` reads."""
    dtypes = sorted({tensor.dtype for tensor in index.tensors})
    document = {
        "craftcache_index": VERSION,
        "file_size": index.file_size,
        "format": index.format,
        "reason": index.reason,
        "dtypes": dtypes,
        "storages": [number for storage in index.storages for number in storage],
        "dtype": [dtypes.index(tensor.dtype) for tensor in index.tensors],
        "storage": [tensor.storage for tensor in index.tensors],
        "shape": [list(tensor.shape) for tensor in index.tensors],
        "views": [
            [number, *_dump_view(tensor)]
            for number, tensor in enumerate(index.tensors)
            if tensor.stride is not None or tensor.requires_grad or tensor.is_parameter
        ],
        "tree": index.tree,
    }
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse(data: bytes, *, file_size: int) -> Index:
    """The index that ``data`` is, checked against a file of ``file_size`` bytes.

    Raises:
        InvalidIndex: Anything is out of form or points outside the file.
    """
    document = _parse_document(data)
    if document.get("file_size") != file_size:
        raise InvalidIndex(f"is of a file of {document.get('file_size')} bytes, not {file_size}")
    form, reason, dtypes = (document.get(key) for key in ("format", "reason", "dtypes"))
    if form not in ("zip", "legacy"):
        raise InvalidIndex(f"unknown format {form!r}")
    if reason is not None and type(reason) is not str:
        raise InvalidIndex("reason is no string")
    if type(dtypes) is not list or not all(
        type(name) is str and name in ITEM_BYTES for name in dtypes
    ):
        raise InvalidIndex("an unknown dtype")
    storages = _parse_storages(document.get("storages"), file_size)
    tensors = _parse_tensors(document, dtypes, storages)
    if reason is not None and (storages or tensors):
        raise InvalidIndex("has a reason not to be used, and tensors")
    tree: Node = document.get("tree")
    assemble(tree, tensors)
    return Index(file_size, form, reason, storages, tensors, tree)


def assemble(tree: Node, tensors: Sequence[object]) -> object:
    """The object that a tree describes, with ``tensors`` in the places of their numbers.

    Raises:
        InvalidIndex: The tree is malformed or names a tensor beyond ``tensors``.
    """
    return _assemble(tree, tensors, 0)


def _assemble(node: object, tensors: Sequence[object], depth: int) -> object:
    if isinstance(node, dict):
        raise InvalidIndex("a JSON object in the tree")
    if not isinstance(node, list):
        return node
    if depth > MAX_DEPTH:
        raise InvalidIndex(f"nested deeper than {MAX_DEPTH}")
    match node:
        case ["T", int(number)]:
            return _consecutive(tensors, number, 1)[0]
        case ["d", list(keys), values]:
            return dict(_items(keys, values, tensors, depth))
        case ["o", list(keys), values, attributes]:
            ordered = OrderedDict(_items(keys, values, tensors, depth))
            state = _assemble(attributes, tensors, depth + 1)
            if type(state) is not dict or not all(type(name) is str for name in state):
                raise InvalidIndex("attributes of an OrderedDict are no dict of names")
            vars(ordered).update(state)
            return ordered
        case ["l", list(values)]:
            return [_assemble(value, tensors, depth + 1) for value in values]
        case ["t", list(values)]:
            return tuple(_assemble(value, tensors, depth + 1) for value in values)
        case ["f", str(name)] if name in _FLOATS:
            return _FLOATS[name]
    raise InvalidIndex("a node of no known kind")


def _items(
    keys: list[Node], values: Node, tensors: Sequence[object], depth: int
) -> Iterable[tuple[Hashable, object]]:
    """The items of a dict; each key must be hashable and appear once."""
    built: Sequence[object]
    if isinstance(values, list):
        built = [_assemble(value, tensors, depth + 1) for value in values]
    else:
        built = _consecutive(tensors, values, len(keys))
    names: list[Any] = keys
    if set(map(type, keys)) - {str}:
        names = [_assemble(key, tensors, depth + 1) for key in keys]
    try:
        distinct = len(set(names))
    except TypeError as error:
        raise InvalidIndex("a key that cannot be one") from error
    if not distinct == len(names) == len(built):
        raise InvalidIndex("keys and values of a dict do not pair up")
    return zip(names, built, strict=True)


def _consecutive(tensors: Sequence[object], first: object, count: int) -> Sequence[object]:
    if type(first) is not int or not 0 <= first <= len(tensors) - count:
        raise InvalidIndex(f"tensors {first!r} and on of {len(tensors)}")
    return tensors[first : first + count]


def _dump_view(tensor: Tensor) -> list[Any]:
    flags = tensor.requires_grad * _REQUIRES_GRAD | tensor.is_parameter * _PARAMETER
    stride = tensor.stride if tensor.stride is not None else contiguous_stride(tensor.shape)
    return [list(stride), tensor.offset, flags]


def contiguous_stride(shape: Sequence[int]) -> list[int]:
    """The stride that torch gives a contiguous tensor of this shape."""
    stride: list[int] = []
    step = 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return stride[::-1]


def _parse_document(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise InvalidIndex(f"longer than {MAX_BYTES} bytes")
    try:
        document = _DECODER.decode(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise InvalidIndex(f"no JSON: {error}") from error
    if type(document) is not dict or document.get("craftcache_index") != VERSION:
        raise InvalidIndex(f"no index of version {VERSION}")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidIndex(f"{name} is no JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def _parse_storages(numbers: object, file_size: int) -> list[Storage]:
    if not _is_integers(numbers) or len(numbers) % 2 or len(numbers) > 2 * MAX_TENSORS:
        raise InvalidIndex("storages are no pairs of integers, or too many")
    offsets, sizes = numbers[::2], numbers[1::2]
    ends = [0, *map(add, offsets, sizes)]
    if min(sizes, default=0) < 0 or any(map(lt, offsets, ends)):
        raise InvalidIndex("storages overlap or are out of order")
    if ends[-1] > file_size:
        raise InvalidIndex(f"a storage ends at byte {ends[-1]} of a file of {file_size}")
    return list(map(Storage, offsets, sizes))


def _parse_tensors(
    document: dict[str, Any], dtypes: list[str], storages: list[Storage]
) -> list[Tensor]:
    """The tensors, each inside its storage in every element.

    Whole columns are checked at once where that is possible: this runs in each ``load``.
    """
    numbers, owners, shapes = (document.get(key) for key in ("dtype", "storage", "shape"))
    if not (_is_numbers(numbers, len(dtypes)) and _is_numbers(owners, len(storages))):
        raise InvalidIndex("a tensor whose dtype or storage is none")
    if not (
        type(shapes) is list
        and set(map(type, shapes)) <= {list}
        and _is_integers(sizes := list(chain.from_iterable(shapes)))
        and min(sizes, default=0) >= 0
        and max(map(len, shapes), default=0) <= MAX_DIMENSIONS
    ):
        raise InvalidIndex("a tensor whose shape is none")
    if not len(numbers) == len(owners) == len(shapes) <= MAX_TENSORS:
        raise InvalidIndex("columns of unequal length, or too many tensors")
    names = [dtypes[number] for number in numbers]
    item_bytes = [ITEM_BYTES[name] for name in names]
    offsets, room = zip(*map(storages.__getitem__, owners), strict=True) if owners else ((), ())
    if any(map(mod, offsets, item_bytes)):
        raise InvalidIndex("a storage that is not aligned for its tensor")
    if 0 in sizes and any(map(_overflows, shapes)):
        raise InvalidIndex("a tensor of an absurd shape")
    tensors = list(map(Tensor, names, owners, shapes))
    filled = list(map(mul, map(prod, shapes), item_bytes))
    for number, row in _parse_views(document.get("views"), len(shapes)).items():
        tensors[number] = _parse_view(row, tensors[number], room[number])
        filled[number] = room[number]
    if filled != list(room):
        raise InvalidIndex("a tensor that does not fill its storage")
    return tensors


def _parse_views(rows: object, count: int) -> dict[int, list[Any]]:
    """The rows of the table of views by their tensor's number, without it."""
    if type(rows) is not list or not all(type(row) is list and len(row) == 4 for row in rows):
        raise InvalidIndex("views are no array of arrays of 4")
    if not _is_numbers([row[0] for row in rows], count):
        raise InvalidIndex("a view of no tensor")
    return {row[0]: row[1:] for row in rows}


def _parse_view(row: list[Any], tensor: Tensor, nbytes: int) -> Tensor:
    """The tensor with the stride, offset and flags of its row, inside its storage of ``nbytes``."""
    stride, first, flags = row
    dtype, storage, shape, *_ = tensor
    if not (
        _is_integers(stride)
        and len(stride) == len(shape)
        and all(0 <= step <= MAX_ELEMENTS for step in stride)
        and type(first) is type(flags) is int
        and 0 <= flags <= _REQUIRES_GRAD | _PARAMETER
    ):
        raise InvalidIndex("a view whose stride, offset or flags are none")
    room = nbytes // ITEM_BYTES[dtype]
    last = first + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if not 0 <= first <= room or (last >= room and 0 not in shape):
        raise InvalidIndex("a view that reaches outside its storage")
    requires_grad = bool(flags & _REQUIRES_GRAD)
    if requires_grad and not dtype.startswith(("float", "bfloat", "complex")):
        raise InvalidIndex(f"a gradient for {dtype}")
    return Tensor(dtype, storage, shape, stride, first, requires_grad, bool(flags & _PARAMETER))


def _is_integers(value: object) -> TypeGuard[list[int]]:
    return type(value) is list and set(map(type, value)) <= {int}


def _is_numbers(value: object, count: int) -> TypeGuard[list[int]]:
    """Whether it is a list of integers from 0 to below ``count``."""
    return _is_integers(value) and (not value or (min(value) >= 0 and max(value) < count))


def _overflows(shape: Sequence[int]) -> bool:
    return prod(max(size, 1) for size in shape) > MAX_ELEMENTS
