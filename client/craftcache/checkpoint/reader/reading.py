"""From the file of a checkpoint to its index."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from craftcache.amounts import counted
from craftcache.checkpoint.index import Index, Storage
from craftcache.errors import NotACheckpoint, UnsafeCheckpoint

from .archive import is_archive, read_archive
from .describe import Describer, plain_values
from .descriptions import StorageBytes
from .legacy import read_legacy
from .names import DTYPE_BYTES
from .tensor_calls import storage_dtype
from .unpickler import MAX_PICKLE_BYTES, Unpickler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .archive import Record

__all__ = ["ArchivePickle", "read_index", "read_pickle"]

_MAX_EXPANSION: Final = 16
"""How often its own size a compressed checkpoint may unpack to."""


def read_index(fd: int) -> Index:
    """The index of the checkpoint behind ``fd``; nothing that it asks for is run.

    Where ``reason`` of the index is None, ``craftcache.checkpoint.tensors.build`` makes of it what
    ``torch.load(weights_only=True)`` returns. Otherwise ``reason`` says what it holds that an index
    cannot say, and only torch can load it: all that it names is on the weights-only list of torch
    2.13 or on ALLOWED_GLOBALS.

    Args:
        fd: Open for reading; its position is neither used nor changed.

    Raises:
        UnsafeCheckpoint: Loading it would call something that is not allowed; it is named.
        NotACheckpoint: It is damaged, absurd, or no checkpoint at all.
        MemoryError: Describing it takes more memory than there is; whoever confines this process
            knows whether that is the file's fault.
        OSError: It cannot be read.
    """
    return _read_archive(fd) if is_archive(fd) else _read_legacy(fd)


@dataclass(frozen=True, slots=True)
class ArchivePickle:
    """The pickle of a zip archive, which was interpreted and asks for nothing that is not allowed.

    Attributes:
        data: The pickle.
        storages: Place in the file of each storage that it asks for, by key.
        reason: Why the storages cannot be used as they lie there, or None.
    """

    data: bytes
    storages: Mapping[str | int, Storage]
    reason: str | None


def read_pickle(fd: int) -> ArchivePickle:
    """The pickle of the archive behind ``fd``, for who must unpickle what an index cannot say.

    Args:
        fd: As of read_index, whose errors these are too.
    """
    return _interpret(fd)[2]


def _interpret(fd: int) -> tuple[Any, str | None, ArchivePickle]:
    """What an archive's pickle holds, what an index cannot say of that or None, and the pickle."""
    records = read_archive(fd)
    if "constants.pkl" in records:
        raise UnsafeCheckpoint(
            "it is a TorchScript archive, which holds code",
            hint="Ask its publisher for a state dict that torch.save wrote",
        )
    if sum(record.nbytes for record in records.values()) > _MAX_EXPANSION * os.fstat(fd).st_size:
        raise NotACheckpoint(f"it unpacks to more than {_MAX_EXPANSION} times its own size")
    storages = _ArchiveStorages(records)
    data = _read_record(fd, records, "data.pkl")
    unpickler = Unpickler(data, storages.load)
    checkpoint = unpickler.load()
    byte_order = _read_record(fd, records, "byteorder") if "byteorder" in records else b"little"
    if byte_order not in (b"little", b"big"):
        raise NotACheckpoint("its byte order is neither little nor big")
    reason: str | None = None
    if any(record.compressed for record in records.values()):
        reason = "its records are compressed"
    elif byte_order == b"big":
        reason = "its tensors are big-endian"
    return checkpoint, unpickler.reason, ArchivePickle(data, storages.places, reason)


def _read_archive(fd: int) -> Index:
    file_size = os.fstat(fd).st_size
    checkpoint, oddity, pickled = _interpret(fd)
    describer = Describer(pickled.storages, aligned=True)
    tree = describer.node(checkpoint)
    reason = pickled.reason or describer.reason or oddity
    if reason is not None:
        return Index(file_size, "zip", reason, (), (), plain_values(checkpoint))
    return Index(file_size, "zip", None, *describer.tables(), tree)


def _read_legacy(fd: int) -> Index:
    file_size = os.fstat(fd).st_size
    checkpoint, places, reason = read_legacy(fd, file_size)
    describer = Describer(places, aligned=False)
    tree = describer.node(checkpoint)
    reason = describer.reason or reason
    if reason is not None:
        return Index(file_size, "legacy", reason, (), (), plain_values(checkpoint))
    return Index(file_size, "legacy", None, *describer.tables(), tree)


def _read_record(fd: int, records: Mapping[str, Record], name: str) -> bytes:
    record = records.get(name)
    if record is None:
        raise NotACheckpoint(f"the archive has no {name}")
    if max(record.nbytes, record.stored_nbytes) > MAX_PICKLE_BYTES:
        raise NotACheckpoint(
            f"its {name} has {counted(record.nbytes, 'byte')}; {MAX_PICKLE_BYTES} are allowed"
        )
    data = os.pread(fd, record.stored_nbytes, record.offset)
    if record.compressed:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, record.nbytes + 1)
        except zlib.error as error:
            raise NotACheckpoint(f"its {name} cannot be unpacked") from error
    if len(data) != record.nbytes:
        raise NotACheckpoint(f"its {name} is not as long as it says")
    return data


class _ArchiveStorages:
    """The storages that an archive's pickle asks for, checked against its records.

    Attributes:
        places: Place in the file of each storage, by key.
    """

    def __init__(self, records: Mapping[str, Record]) -> None:
        self.places: dict[str | int, Storage] = {}
        self._records = records
        self._storages: dict[str, StorageBytes] = {}

    def load(self, key: tuple[Any, ...]) -> StorageBytes:
        """The storage with that persistent id."""
        _, kind, name, _, count = key
        dtype = storage_dtype(kind)
        if type(name) is not str or type(count) is not int:
            raise NotACheckpoint("a storage without a name or a size")
        nbytes = count * DTYPE_BYTES[dtype]
        storage = self._storages.get(name)
        if storage is None:
            record = self._records.get(f"data/{name}")
            if record is None or nbytes != record.nbytes:
                raise NotACheckpoint(
                    f"storage {name} of {counted(nbytes, 'byte')} is not in the archive"
                )
            storage = self._storages[name] = StorageBytes(name, dtype, nbytes)
            self.places[name] = Storage(record.offset, nbytes)
        if storage.dtype != dtype or storage.nbytes != nbytes:
            raise NotACheckpoint(f"storage {name} has two dtypes or sizes")
        return storage
