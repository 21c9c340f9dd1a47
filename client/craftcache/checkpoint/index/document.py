"""An index as its JSON document: written, and read with nothing taken on trust."""

from __future__ import annotations

import json
from itertools import chain
from math import prod
from operator import add, lt, mod, mul
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeGuard

from .form import (
    ITEM_BYTES,
    MAX_BYTES,
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_TENSORS,
    VERSION,
    Index,
    InvalidIndex,
    Storage,
    Tensor,
    contiguous_stride,
)
from .tree import assemble

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .form import Node

__all__ = ["dump", "parse"]

_REQUIRES_GRAD: Final = 1
_PARAMETER: Final = 2
"""Flags of a view."""


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


def _dump_view(tensor: Tensor) -> list[Any]:
    flags = tensor.requires_grad * _REQUIRES_GRAD | tensor.is_parameter * _PARAMETER
    stride = tensor.stride if tensor.stride is not None else contiguous_stride(tensor.shape)
    return [list(stride), tensor.offset, flags]


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
    if document.get("format") != "legacy" and any(map(mod, offsets, item_bytes)):
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
    """Rows of the table of views by tensor number, each without its first column, that number."""
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
