"""How the storages of a file are cut into pieces that a buffer holds.

A piece of large storages is one window of the file, read at once. Small storages are gathered from
wherever they are into pieces of their own, so that hundreds of them are one transfer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["PAGE_BYTES", "SMALL_BYTES", "Fragment", "Piece", "FileSpan", "cut"]

PAGE_BYTES: Final = 4096
"""Reads begin and end at multiples of it, in the file and in memory: reads past the page cache
must, and others are faster for it."""

SMALL_BYTES: Final = 64 * 1024
"""Size up to which storages travel together: the start of a transfer costs as much as these bytes
take on their way."""

_GAP_BYTES: Final = 64 * 1024
"""Bytes between two storages that are rather read than skipped."""


@dataclass(frozen=True, slots=True)
class FileSpan:
    """Bytes of the file, and where in the buffer they go; all three are multiples of a page.

    The last span of a file may reach beyond its end.
    """

    offset: int
    nbytes: int
    position: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """Part of a storage, and where in the buffer it is; sizes and places in bytes."""

    storage: int
    start: int
    nbytes: int
    position: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What goes through one buffer.

    Attributes:
        spans: What is read.
        fragments: What is copied of it; the rest lies between storages.
        used: Bytes of the buffer up to the end of the last fragment.
        together: Whether it is small storages, to be sent in one transfer.
    """

    spans: Sequence[FileSpan]
    fragments: Sequence[Fragment]
    used: int
    together: bool


def cut(storages: Sequence[tuple[int, int]], capacity: int) -> Iterator[Piece]:
    """The pieces that bring every byte of the storages, each once, in the order of the file.

    Small storages come last.

    Args:
        storages: Offset and size in bytes of each, in the order of the file.
        capacity: Size of a buffer in bytes; a multiple of PAGE_BYTES.
    """
    small = [number for number, (_, nbytes) in enumerate(storages) if 0 < nbytes <= SMALL_BYTES]
    large = [number for number, (_, nbytes) in enumerate(storages) if nbytes > SMALL_BYTES]
    yield from _cut_windows(storages, large, capacity)
    yield from _gather(storages, small, capacity)


def _cut_windows(
    storages: Sequence[tuple[int, int]], numbers: Sequence[int], capacity: int
) -> Iterator[Piece]:
    """One window of the file for each piece, as long as the buffer where there is that much."""
    first = end = 0
    """Where in the file the window begins and how far it is filled."""
    fragments: list[Fragment] = []
    for number in numbers:
        offset, nbytes = storages[number]
        start = 0
        while start < nbytes:
            place = offset + start
            if fragments and (place - end > _GAP_BYTES or place >= first + capacity):
                yield _window(first, end, fragments)
                fragments = []
            if not fragments:
                first = _down(place)
            taken = min(nbytes - start, first + capacity - place)
            fragments.append(Fragment(number, start, taken, place - first))
            start += taken
            end = place + taken
    if fragments:
        yield _window(first, end, fragments)


def _window(first: int, end: int, fragments: Sequence[Fragment]) -> Piece:
    return Piece(
        (FileSpan(first, _up(end) - first, 0),), tuple(fragments), end - first, together=False
    )


def _gather(
    storages: Sequence[tuple[int, int]], numbers: Sequence[int], capacity: int
) -> Iterator[Piece]:
    """Pieces of whole small storages; neighbours are read at once."""
    spans: list[FileSpan] = []
    fragments: list[Fragment] = []
    for number in numbers:
        offset, nbytes = storages[number]
        last = spans[-1] if spans else None
        if last is not None and offset <= last.offset + last.nbytes + PAGE_BYTES:
            grown = _up(offset + nbytes) - last.offset
            if last.position + grown <= capacity:
                spans[-1] = FileSpan(last.offset, max(grown, last.nbytes), last.position)
                fragments.append(Fragment(number, 0, nbytes, last.position + offset - last.offset))
                continue
        first = _down(offset)
        length = _up(offset + nbytes) - first
        position = last.position + last.nbytes if last else 0
        if position + length > capacity:
            yield _together(spans, fragments)
            spans, fragments, position = [], [], 0
        spans.append(FileSpan(first, length, position))
        fragments.append(Fragment(number, 0, nbytes, position + offset - first))
    if fragments:
        yield _together(spans, fragments)


def _together(spans: Sequence[FileSpan], fragments: Sequence[Fragment]) -> Piece:
    used = max(fragment.position + fragment.nbytes for fragment in fragments)
    return Piece(tuple(spans), tuple(fragments), used, together=True)


def _down(offset: int) -> int:
    return offset // PAGE_BYTES * PAGE_BYTES


def _up(offset: int) -> int:
    return -(-offset // PAGE_BYTES) * PAGE_BYTES
