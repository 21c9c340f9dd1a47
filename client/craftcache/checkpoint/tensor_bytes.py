"""How many bytes of tensors a file holds, by dtype, without torch."""

from __future__ import annotations

import json
import struct
from collections import Counter
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from .index import Index

__all__ = ["of_index", "of_safetensors"]

MAX_HEADER_BYTES = 100_000_000
"""Bytes of a safetensors header, as that library bounds it."""

_LENGTH = struct.Struct("<Q")

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
    "C64": "complex64",
}
"""Names of safetensors for dtypes, with those of torch."""


def of_index(index: Index) -> dict[str, int]:
    """Bytes of a checkpoint's storages by dtype; a storage that tensors share counts once."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    for tensor in index.tensors:
        if tensor.storage not in seen:
            seen.add(tensor.storage)
            found[tensor.dtype] += index.storages[tensor.storage].nbytes
    return dict(found)


def of_safetensors(file: BinaryIO) -> dict[str, int] | None:
    """Bytes of a safetensors file's tensors by dtype, from its header; None where it has none."""
    try:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > MAX_HEADER_BYTES:
            return None
        header = json.loads(file.read(length))
        found: Counter[str] = Counter()
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = map(int, tensor["data_offsets"])
                dtype = str(tensor["dtype"])
                found[_DTYPES.get(dtype, dtype.lower())] += max(end - begin, 0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return dict(found)
