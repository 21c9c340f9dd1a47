"""Writing a checkpoint's weights anew in a wider dtype, so that a node's workers can share them.

AudioCraft publishes half-precision weights and computes in single precision on the CPU: each worker
would hold a copy of its own, twice the file's size. Every half-precision number is a
single-precision one, so the cast is exact, and one file of them serves all.

Runs in a confined child. The file written is the storages alone, one after the other, with an index
that says of it what the original's says of the original.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from craftcache.checkpoint.descriptor import read_into
from craftcache.checkpoint.index import ITEM_BYTES, Storage, dump, parse

from .examine import examine

if TYPE_CHECKING:
    from craftcache.checkpoint.index import Index

__all__ = ["MAX_GROWTH", "cast"]

MAX_GROWTH: Final = 3
"""By which a file may grow at most: numbers by twice, small storages by their alignment."""

_EXACT: Final = {("float16", "float32"), ("bfloat16", "float32")}
"""From which dtype to which every number stays what it is."""

_STEP_BYTES: Final = 16 * 1024 * 1024
"""Of the original, read and cast at a time."""

_ALIGNMENT: Final = 64
"""Bytes; that of torch.save's archives."""


def cast(file: int, output: int, dtype: str) -> bytes:
    """Write the checkpoint behind ``file`` to ``output``, durably, with what can be in ``dtype``.

    Storages of other dtypes, and those that tensors of several dtypes share, are copied.

    Args:
        file: Open for reading.
        output: An empty file, open for writing.
        dtype: By its name in the module torch.

    Returns:
        The index of what was written; nothing where it would be no other than the original's, or
        only torch can load the file.

    Raises:
        UnsafeCheckpoint, NotACheckpoint: As examine.
        OSError: It cannot be read or written; the file may be full.
    """
    index = parse(examine(file), file_size=os.fstat(file).st_size)
    widened = _castable(index, dtype)
    if not widened:
        return b""
    storages = []
    end = 0
    for number, storage in enumerate(index.storages):
        start = end + -end % _ALIGNMENT
        end = _write(file, storage, output, start, widened.get(number), dtype)
        storages.append(Storage(start, end - start))
    os.ftruncate(output, end)
    os.fsync(output)  # here, where it holds up nobody
    tensors = [
        tensor._replace(dtype=dtype) if tensor.storage in widened else tensor
        for tensor in index.tensors
    ]
    return dump(replace(index, file_size=end, storages=storages, tensors=tensors))


def _castable(index: Index, dtype: str) -> dict[int, str]:
    """The storages that can be in ``dtype``, each with the one dtype that it has."""
    dtypes: dict[int, set[str]] = defaultdict(set)
    for tensor in index.tensors:
        dtypes[tensor.storage].add(tensor.dtype)
    return {
        number: given
        for number, (given, *others) in dtypes.items()
        if not others
        and (given, dtype) in _EXACT
        and index.storages[number].nbytes % ITEM_BYTES[given] == 0
    }


def _write(
    file: int, storage: Storage, output: int, end: int, given: str | None, dtype: str
) -> int:
    """Write a storage of ``given`` dtype, or as it is, at ``end``; returns where it ends."""
    buffer = bytearray(min(storage.nbytes, _STEP_BYTES))
    for start in range(0, storage.nbytes, _STEP_BYTES):
        part = memoryview(buffer)[: storage.nbytes - start]
        read_into(file, part, storage.offset + start)
        if given is not None:
            part = memoryview(_widened(part, given, dtype))
        while part:
            count = os.pwrite(output, part, end)
            part, end = part[count:], end + count
    return end


def _widened(values: memoryview, given: str, dtype: str) -> bytearray:
    count = len(values) // ITEM_BYTES[given]
    widened = bytearray(count * ITEM_BYTES[dtype])
    narrow = torch.frombuffer(values, dtype=getattr(torch, given))
    torch.frombuffer(widened, dtype=getattr(torch, dtype)).copy_(narrow)
    return widened
