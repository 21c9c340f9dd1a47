"""The container of torch before 1.6: five pickles one after another, then the storages' bytes.

The pickles are a magic number, a version, what machine wrote it, the checkpoint, and the keys of
its storages in the order in which these follow: each its number of elements, in 8 bytes, and then
its bytes. So nothing is aligned.
"""

from __future__ import annotations

import os
import struct
from typing import Any, Final, NoReturn

from craftcache.checkpoint.index import MAX_TENSORS, Storage
from craftcache.errors import NotACheckpoint

from .descriptions import StorageBytes
from .names import DTYPE_BYTES, UNTYPED_STORAGE
from .tensor_calls import storage_dtype
from .unpickler import MAX_PICKLE_BYTES, Unpickler

__all__ = ["read_legacy"]

_PROTO: Final = b"\x80"
_MAGIC: Final = 0x1950A86A20F9469CFC6C
_VERSION: Final = 1001
_PART: Final = "it holds a storage that is a part of another"
"""As torch before 0.4 could save."""

_UNTYPED: Final = "it holds an untyped storage in the format of torch before 1.6"
"""As torch saves its newer dtypes, and cannot load them."""

_COUNT: Final = struct.Struct("<q")


def read_legacy(fd: int, file_size: int) -> tuple[object, dict[str | int, Storage], str | None]:
    """What the file holds, described; where its storages are; what an index cannot say, or None.

    Raises:
        UnsafeCheckpoint, NotACheckpoint: See read_index.
        OSError: It cannot be read.
    """
    head = os.pread(fd, min(file_size, MAX_PICKLE_BYTES), 0)
    if head[:1] != _PROTO:
        raise NotACheckpoint(
            "it begins like no checkpoint", hint="It must be a file that torch.save wrote"
        )
    position = 0
    reason: str | None = None

    def load(storages: _LegacyStorages | None = None) -> Any:  # noqa: ANN401  whatever it holds
        nonlocal position, reason
        unpickler = Unpickler(head, storages.load if storages else _refuse_storage, position)
        loaded = unpickler.load()
        position, reason = unpickler.position, reason or unpickler.reason
        return loaded

    if load() != _MAGIC:
        raise NotACheckpoint("it begins like no checkpoint")
    if load() != _VERSION:
        raise NotACheckpoint("its version of the legacy format is unknown")
    load()
    storages = _LegacyStorages(file_size)
    checkpoint = load(storages)
    keys = load()
    return checkpoint, storages.places(fd, position, keys), reason


def _refuse_storage(_: object) -> NoReturn:
    raise NotACheckpoint("a storage outside its checkpoint")


class _LegacyStorages:
    """The storages that a legacy file's pickle asks for; their bytes follow it in the file."""

    def __init__(self, file_size: int) -> None:
        self._file_size = file_size
        self._storages: dict[str | int, StorageBytes] = {}

    def load(self, key: tuple[Any, ...]) -> StorageBytes:
        """The storage with that persistent id."""
        _, kind, name, _, count, part = key
        dtype = storage_dtype(kind)
        if type(name) not in (str, int) or type(count) is not int:
            raise NotACheckpoint("a storage without a name or a size")
        nbytes = count * DTYPE_BYTES[dtype]
        if not 0 <= nbytes <= self._file_size:
            raise NotACheckpoint(f"storage {name} is larger than the file")
        untyped = _UNTYPED if kind.name == UNTYPED_STORAGE else None
        storage = self._storages.setdefault(name, StorageBytes(name, dtype, nbytes, untyped))
        if storage.dtype != dtype or storage.nbytes != nbytes:
            raise NotACheckpoint(f"storage {name} has two dtypes or sizes")
        if part is None:
            return storage
        _, start, length = part
        if (
            type(start) is not int
            or type(length) is not int
            or not 0 <= start <= start + length <= count
        ):
            raise NotACheckpoint(f"a view that reaches outside storage {name}")
        return StorageBytes(name, dtype, length * DTYPE_BYTES[dtype], _PART)

    def places(self, fd: int, position: int, keys: object) -> dict[str | int, Storage]:
        """Where the storages are, that lie one after another from ``position`` on, in full."""
        if type(keys) is not list or len(keys) > MAX_TENSORS:
            raise NotACheckpoint(f"it has no list of at most {MAX_TENSORS} storages")
        places: dict[str | int, Storage] = {}
        for key in keys:
            storage = self._storages.get(key)
            if storage is None or key in places:
                raise NotACheckpoint(f"storage {key} is unknown, or twice in the file")
            found = os.pread(fd, _COUNT.size, position)
            start = position + _COUNT.size
            position = start + storage.nbytes
            count = storage.nbytes // DTYPE_BYTES[storage.dtype]
            if found != _COUNT.pack(count) or position > self._file_size:
                raise NotACheckpoint(f"storage {key} is not whole in the file")
            places[key] = Storage(start, storage.nbytes)
        if len(places) < len(self._storages):
            raise NotACheckpoint("it holds a storage whose bytes are not in the file")
        return places
