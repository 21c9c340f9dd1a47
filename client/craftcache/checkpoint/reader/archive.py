"""The zip archives that torch.save writes, read strictly.

torch's own reader takes what miniz makes of a zip; another reader may see another file in the
same bytes. An archive is accepted only where there is nothing to disagree on: one directory at
the very end, each name once, local headers that agree with it, and no two records in one place.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple

from craftcache.checkpoint.index import MAX_TENSORS
from craftcache.errors import NotACheckpoint

__all__ = ["Record", "is_archive", "read_archive"]

_MAX_RECORDS: Final = MAX_TENSORS + 100
"""One for each storage and torch's own few."""

_MAX_DIRECTORY_BYTES: Final = 32 * 1024 * 1024

_END: Final = struct.Struct("<4s4H2LH")
_END64_LOCATOR: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_EXTRA: Final = struct.Struct("<2H")

_UNKNOWN16: Final = 0xFFFF
_UNKNOWN32: Final = 0xFFFFFFFF
_ZIP64_EXTRA: Final = 1
_ENCRYPTED: Final = 1
_STORED: Final = 0
_DEFLATED: Final = 8


class Record(NamedTuple):
    """One record of an archive.

    Attributes:
        name: Name without the name of the archive and its slash.
        start: Offset of its local header in the file, in bytes.
        offset: Offset of the first byte of its data in the file.
        stored_nbytes: Bytes of its data as stored in the file.
        nbytes: Bytes of its data, decompressed.
        compressed: Whether its data is stored compressed.
    """

    name: str
    start: int
    offset: int
    stored_nbytes: int
    nbytes: int
    compressed: bool


def is_archive(fd: int) -> bool:
    """Whether the file begins as a zip archive does, which is how torch.load tells."""
    return os.pread(fd, 4, 0) == b"PK\x03\x04"


def read_archive(fd: int) -> dict[str, Record]:
    """The records of an archive by name.

    Raises:
        NotACheckpoint: It is truncated, ambiguous, or nothing that torch.save would write.
    """
    size = os.fstat(fd).st_size
    start, length, count = _find_directory(fd, size)
    if count > _MAX_RECORDS or length > _MAX_DIRECTORY_BYTES:
        raise NotACheckpoint(f"an archive of {count} records; {_MAX_RECORDS} are allowed")
    records = _read_entries(fd, _read(fd, start, length), count)
    records.sort(key=lambda record: record.start)
    for record, following in zip(records, [*(r.start for r in records[1:]), start], strict=True):
        if record.offset + record.stored_nbytes > following:
            raise NotACheckpoint(f"record {record.name} reaches into the next one")
    if len({record.name.lower() for record in records}) != len(records):
        raise NotACheckpoint("its archive has two records of one name")
    return {record.name: record for record in records}


def _find_directory(fd: int, size: int) -> tuple[int, int, int]:
    """Where the directory starts, its bytes and its number of entries."""
    at = size - _END.size
    mark, disk, disk_of_directory, here, count, length, start, comment = _END.unpack(
        _read(fd, at, _END.size)
    )
    if mark != b"PK\x05\x06" or comment:
        raise NotACheckpoint("it is truncated, or something follows its zip archive")
    if _UNKNOWN16 in (here, count) or _UNKNOWN32 in (length, start):
        at -= _END64_LOCATOR.size
        mark, _, at64, _ = _END64_LOCATOR.unpack(_read(fd, at, _END64_LOCATOR.size))
        if mark != b"PK\x06\x07" or at64 + _END64.size != at:
            raise NotACheckpoint("its zip64 directory is not where it should be")
        at = at64
        mark, _, _, _, disk, disk_of_directory, here, count, length, start = _END64.unpack(
            _read(fd, at, _END64.size)
        )
        if mark != b"PK\x06\x06":
            raise NotACheckpoint("its zip64 directory is not where it should be")
    if disk or disk_of_directory or here != count:
        raise NotACheckpoint("it is one part of a split archive")
    if start + length > at:
        raise NotACheckpoint("its zip directory reaches outside the file")
    return start, length, count


def _read_entries(fd: int, directory: bytes, count: int) -> list[Record]:
    """The records; all are in one folder, which has the archive's name."""
    records = []
    archive = ""
    at = 0
    for _ in range(count):
        try:
            mark, _, _, flags, method, _, _, _, stored, nbytes, *lengths = _ENTRY.unpack_from(
                directory, at
            )
        except struct.error as error:
            raise NotACheckpoint("its zip directory is truncated") from error
        name_length, extra_length, comment_length, _, _, _, start = lengths
        at += _ENTRY.size
        name = directory[at : at + name_length]
        extra = directory[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment_length
        if mark != b"PK\x01\x02" or at > len(directory):
            raise NotACheckpoint("its zip directory is malformed")
        if _UNKNOWN32 in (nbytes, stored, start):
            nbytes, stored, start = _widen(extra, nbytes, stored, start)
        if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
            raise NotACheckpoint("a record that is encrypted or compressed in an unknown way")
        if method == _STORED and stored != nbytes:
            raise NotACheckpoint("a record that is stored in another size than its own")
        folder, slash, rest = _decode(name).partition("/")
        if not slash or folder != (archive or folder):
            raise NotACheckpoint("records outside the one folder of its archive")
        archive = folder
        offset = _find_data(fd, start, name, method)
        records.append(Record(rest, start, offset, stored, nbytes, method != _STORED))
    return records


def _widen(extra: bytes, *values: int) -> list[int]:
    """The values, with those that 32 bits cannot hold read from the zip64 field."""
    wide = iter(())
    while len(extra) >= _EXTRA.size:
        kind, length = _EXTRA.unpack_from(extra)
        field, extra = extra[_EXTRA.size : _EXTRA.size + length], extra[_EXTRA.size + length :]
        if kind == _ZIP64_EXTRA:
            wide = (number for (number,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8]))
            break
    try:
        return [next(wide) if value == _UNKNOWN32 else value for value in values]
    except (StopIteration, RuntimeError) as error:
        raise NotACheckpoint("a zip64 record without its sizes") from error


def _find_data(fd: int, start: int, name: bytes, method: int) -> int:
    """Where the data of a record begins, behind a local header that agrees with the directory."""
    header = _read(fd, start, _LOCAL.size + len(name))
    mark, _, _, local_method, *_, name_length, extra_length = _LOCAL.unpack_from(header)
    if (
        mark != b"PK\x03\x04"
        or local_method != method
        or name_length != len(name)
        or header[_LOCAL.size :] != name
    ):
        raise NotACheckpoint("a record's header differs from the archive's directory")
    return start + _LOCAL.size + len(name) + int(extra_length)


def _decode(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise NotACheckpoint("a record whose name is no text") from error


def _read(fd: int, start: int, length: int) -> bytes:
    found = os.pread(fd, length, start) if start >= 0 else b""
    if len(found) != length:
        raise NotACheckpoint("it is truncated")
    return found
