"""Looking into one checkpoint: its container, its pickle, its index.

Runs in a confined child. The pickle is interpreted by torch's own weights-only unpickler; only
where storages come from is replaced. Each storage that the pickle asks for is checked against
the file and handed out as a view of one region of read-only zeros, so that tensors of any kind
(quantized, sparse and nested ones too) are built as torch.load builds them, in no more memory
than their descriptions take. torch's FakeTensorMode would serve the same end, but takes 20 times
as long a tensor and fails on those kinds.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import warnings
import zlib
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import torch
from torch import _weights_only_unpickler as torch_unpickler
from torch.serialization import add_safe_globals

from craftcache.checkpoint import weights_only
from craftcache.checkpoint.descriptor import DescriptorFile
from craftcache.checkpoint.index import Index, Storage, dump
from craftcache.checkpoint.reader.archive import is_archive, read_archive
from craftcache.errors import CraftcacheError, NotACheckpoint, UnsafeCheckpoint

from .describe import Describer, plain_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from craftcache.checkpoint.reader.archive import Record

__all__ = ["allow_globals", "examine"]

_MAX_PICKLE_BYTES: Final = 32 * 1024 * 1024
"""Longest pickle of an archive; one of 100,000 tensors takes 25 MB."""

_MAX_EXPANSION: Final = 16
"""How often its own size a compressed checkpoint may unpack to."""

_TOO_MUCH_MEMORY: Final = "describing it takes more memory than inspection allows"

_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL: Final = 1001
_LEGACY_COUNT: Final = struct.Struct("<q")


def examine(fd: int) -> bytes:
    """The index of the checkpoint behind ``fd``, as ``craftcache.checkpoint.index.dump`` writes it.

    Raises:
        UnsafeCheckpoint: Loading it would call something that is not allowed.
        NotACheckpoint: It is damaged, absurd, or no checkpoint at all.
    """
    try:
        return dump(_examine_archive(fd) if is_archive(fd) else _examine_legacy(fd))
    except CraftcacheError:
        raise
    except MemoryError as error:
        raise NotACheckpoint(_TOO_MUCH_MEMORY) from error
    except Exception as error:  # garbage makes torch's unpickler raise nearly anything
        if "can't allocate memory" in str(error):
            raise NotACheckpoint(_TOO_MUCH_MEMORY) from error
        raise weights_only.translate(error, source=None) from error


def allow_globals() -> None:
    """Extend torch's allow-list for all that this process and its children examine."""
    allowed = weights_only.importable_globals()
    additions: list[Any] = [(value, name) for name, value in allowed.items()]
    additions.remove((defaultdict, "collections.defaultdict"))
    additions.append((_stand_in, "collections.defaultdict"))
    add_safe_globals(additions)


def _stand_in(_: object = None) -> Counter[object]:
    """For a defaultdict: torch refuses to fill one; a Counter it fills, and no index says it."""
    return Counter()


def _examine_archive(fd: int) -> Index:
    records = read_archive(fd)
    if "constants.pkl" in records:
        raise UnsafeCheckpoint(
            "it is a TorchScript archive, which holds code",
            hint="Ask its publisher for a state dict that torch.save wrote",
        )
    file_size = os.fstat(fd).st_size
    if sum(record.nbytes for record in records.values()) > _MAX_EXPANSION * file_size:
        raise NotACheckpoint(f"it unpacks to more than {_MAX_EXPANSION} times its own size")
    storages = _ArchiveStorages(records)
    pickled = io.BytesIO(_read_record(fd, records, "data.pkl"))
    checkpoint = _unpickle(pickled, storages.load)
    byte_order = _read_record(fd, records, "byteorder") if "byteorder" in records else b"little"
    if byte_order not in (b"little", b"big"):
        raise NotACheckpoint("its byte order is neither little nor big")
    describer = Describer(storages.place)
    tree = describer.node(checkpoint)
    reason = describer.reason
    if any(record.compressed for record in records.values()):
        reason = "its records are compressed"
    elif byte_order == b"big":
        reason = "its tensors are big-endian"
    if reason is not None:
        return Index(file_size, "zip", reason, (), (), plain_values(checkpoint))
    return Index(file_size, "zip", None, *describer.tables(), tree)


def _examine_legacy(fd: int) -> Index:
    """The format before torch 1.6: pickles one after another, then the storages' bytes."""
    file_size = os.fstat(fd).st_size
    file = io.BufferedReader(DescriptorFile(fd))
    storages = _LegacyStorages(file_size)
    if file.peek(1)[:1] != pickle.PROTO:
        raise NotACheckpoint(
            "it begins like no checkpoint", hint="It must be a file that torch.save wrote"
        )
    if _unpickle(file, storages.load) != _LEGACY_MAGIC:
        raise NotACheckpoint("it begins like no checkpoint")
    if _unpickle(file, storages.load) != _LEGACY_PROTOCOL:
        raise NotACheckpoint("its version of the legacy format is unknown")
    _unpickle(file, storages.load)
    checkpoint = _unpickle(file, storages.load)
    storages.check_data(file, _unpickle(file, storages.load))
    Describer(storages.place).node(checkpoint)
    reason = "it is in the format of torch before 1.6"
    return Index(file_size, "legacy", reason, (), (), plain_values(checkpoint))


def _unpickle(file: BinaryIO | io.BufferedIOBase, load: Callable[[Any], object]) -> Any:  # noqa: ANN401
    unpickler: Any = torch_unpickler.Unpickler(file, encoding="utf-8")
    unpickler.persistent_load = load
    return unpickler.load()


def _read_record(fd: int, records: Mapping[str, Record], name: str) -> bytes:
    record = records.get(name)
    if record is None:
        raise NotACheckpoint(f"the archive has no {name}")
    if max(record.nbytes, record.stored_nbytes) > _MAX_PICKLE_BYTES:
        raise NotACheckpoint(
            f"its {name} has {record.nbytes} bytes; {_MAX_PICKLE_BYTES} are allowed"
        )
    data = os.pread(fd, record.stored_nbytes, record.offset)
    if record.compressed:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, record.nbytes + 1)
    if len(data) != record.nbytes:
        raise NotACheckpoint(f"its {name} is not as long as it says")
    return data


class _Blanks:
    """Storages of any size that read as zeros and take no memory."""

    def __init__(self, largest: int) -> None:
        size = max(largest, 1)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is read-only is what we want
            zeros = torch.frombuffer(
                mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ), dtype=torch.uint8
            )
        self._zeros: Any = zeros.untyped_storage()

    def make(self, nbytes: int) -> torch.UntypedStorage:
        blank: torch.UntypedStorage = self._zeros[:nbytes]
        return blank


class _ArchiveStorages:
    """The storages that an archive's pickle asks for, checked against its records."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self._records = records
        self._blanks = _Blanks(max((record.nbytes for record in records.values()), default=0))
        self._storages: dict[str, tuple[torch.UntypedStorage, torch.dtype]] = {}
        self._places: dict[int, Storage] = {}

    def load(self, pid: Any) -> object:  # noqa: ANN401  a pickle's argument
        """A pickle's persistent_load."""
        _, kind, key, _, count = pid
        dtype = _dtype(kind)
        nbytes = count * dtype.itemsize
        record = self._records.get(f"data/{key}")
        if type(key) is not str or record is None or nbytes != record.nbytes:
            raise NotACheckpoint(f"storage {key} of {nbytes} bytes is not in the archive")
        if key not in self._storages:
            storage = self._blanks.make(nbytes)
            self._storages[key] = storage, dtype
            self._places[_identity(storage)] = Storage(record.offset, nbytes)
        storage, first = self._storages[key]
        if first is not dtype:
            raise NotACheckpoint(f"storage {key} has two dtypes")
        return _typed(storage, dtype)

    def place(self, storage: torch.UntypedStorage) -> Storage | None:
        """Where a storage lies in the file; None for one that the pickle made up."""
        return self._places.get(_identity(storage))


class _LegacyStorages:
    """The storages that a legacy file's pickle asks for; their bytes follow it in the file."""

    def __init__(self, file_size: int) -> None:
        self._file_size = file_size
        self._blanks = _Blanks(file_size)
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        """In elements and in bytes."""

    def load(self, pid: Any) -> object:  # noqa: ANN401  a pickle's argument
        """A pickle's persistent_load."""
        _, kind, key, _, count, view = pid
        dtype = _dtype(kind)
        size = self._sizes.setdefault(key, (count, count * dtype.itemsize))
        if size != (count, count * dtype.itemsize) or not 0 <= size[1] <= self._file_size:
            raise NotACheckpoint(f"storage {key} has two sizes, or is larger than the file")
        if key not in self._storages:
            self._storages[key] = self._blanks.make(size[1])
        if view is None:
            return _typed(self._storages[key], dtype)
        _, start, length = view
        if not 0 <= start <= start + length <= count:
            raise NotACheckpoint(f"a view that reaches outside storage {key}")
        first, last = start * dtype.itemsize, (start + length) * dtype.itemsize
        return _typed(self._storages[key][first:last], dtype)

    def check_data(self, file: BinaryIO | io.BufferedIOBase, keys: list[str]) -> None:
        """Check that the storages' bytes, each behind its number of elements, are all there."""
        position = file.tell()
        for key in keys:
            count, nbytes = self._sizes[key]
            file.seek(position)
            (found,) = _LEGACY_COUNT.unpack(file.read(_LEGACY_COUNT.size))
            position += _LEGACY_COUNT.size + nbytes
            if found != count or position > self._file_size:
                raise NotACheckpoint(f"storage {key} is not whole in the file")

    def place(self, _: torch.UntypedStorage) -> None:
        """Nowhere: an index does not describe legacy files."""


def _dtype(kind: Any) -> torch.dtype:  # noqa: ANN401  what torch's unpickler has for a storage class
    dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
    if not isinstance(dtype, torch.dtype):
        raise NotACheckpoint("a storage of no dtype")
    return dtype


def _typed(storage: Any, dtype: torch.dtype) -> object:  # noqa: ANN401  torch leaves it untyped
    typed: Any = torch.TypedStorage
    return typed(wrap_storage=storage, dtype=dtype, _internal=True)


def _identity(storage: torch.UntypedStorage) -> int:
    return int(storage._cdata)  # noqa: SLF001  torch has no public name for it
