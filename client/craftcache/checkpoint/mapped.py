"""Private maps of checkpoints: what memory is part of one, and whether anything wrote to it."""

from __future__ import annotations

import mmap
import os
import sys
from typing import Final
from weakref import WeakValueDictionary

import torch

__all__ = [
    "RELEASED_BYTES",
    "Releases",
    "address_of",
    "is_unwritten",
    "map_privately",
    "release",
    "release_span",
]

RELEASED_BYTES: Final = 64 * 1024 * 1024
"""Bytes of storages that are released together: a call for each takes as long as the copies."""


_MAP_NORESERVE: Final = 0x4000
"""From Linux's mman.h: a private map larger than memory is refused without it."""

_PAGEMAP_BYTES: Final = 8
_PAGE_OF_FILE: Final = 1 << 61
_PAGE_SWAPPED: Final = 1 << 62
_PAGE_PRESENT: Final = -(1 << 63)
"""Format of /proc/self/pagemap, see proc(5): the size of an entry, and its bits for a page; the
last is the highest bit, as a signed number has it."""

_MAPS: Final[WeakValueDictionary[int, mmap.mmap]] = WeakValueDictionary()
"""The maps of files that tensors of this process lie in, by their address."""


def map_privately(fd: int, size: int) -> mmap.mmap:
    """A copy-on-write map of the whole file."""
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
    prot = mmap.PROT_READ | mmap.PROT_WRITE
    if sys.version_info >= (3, 13):  # before, a map holds a descriptor of its own while it lives
        mapped = mmap.mmap(fd, size, flags=flags, prot=prot, trackfd=False)
    else:
        mapped = mmap.mmap(fd, size, flags=flags, prot=prot)
    _MAPS[address_of(mapped)] = mapped
    return mapped


def address_of(mapped: mmap.mmap) -> int:
    """Where in memory a map begins."""
    return torch.frombuffer(mapped, dtype=torch.uint8, count=1).data_ptr()


class Releases:
    """Storages to release, some at a time.

    Args:
        are_unwritten: Whether nobody can have written to any of them; otherwise the kernel is
            asked, see release_span.
    """

    def __init__(self, *, are_unwritten: bool) -> None:
        self._are_unwritten = are_unwritten
        self._spans: list[tuple[int, int]] = []
        """Where in memory they are: start and end."""
        self._bytes = 0

    def add(self, tensor: torch.Tensor) -> None:
        """Have the storage of a tensor released, now or with later ones."""
        span = _span_of(tensor)
        if span is None:
            return
        start, nbytes = span
        self._spans.append((start, start + nbytes))
        self._bytes += nbytes
        if self._bytes >= RELEASED_BYTES:
            self._release()

    def _release(self) -> None:
        joined: list[tuple[int, int]] = []
        for start, end in sorted(self._spans):
            if joined and start - joined[-1][1] < mmap.PAGESIZE:
                joined[-1] = joined[-1][0], max(joined[-1][1], end)
            else:
                joined.append((start, end))
        for start, end in joined:
            release_span(start, end - start, is_unwritten_for_certain=self._are_unwritten)
        self._spans.clear()
        self._bytes = 0


def release(tensor: torch.Tensor) -> None:
    """Take the pages of a mapped file that hold a tensor's storage out of this process."""
    span = _span_of(tensor)
    if span is not None:
        release_span(*span)


def _span_of(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Where in memory a tensor's storage is, and its size; None if it has no memory of its own."""
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    except (NotImplementedError, RuntimeError):  # sparse, fake ...
        return None


def release_span(start: int, nbytes: int, *, is_unwritten_for_certain: bool = False) -> None:
    """Take the pages of a mapped file in this part of memory out of this process.

    A later use reads them anew. All are kept where one of them was written to, by whatever means:
    that is nowhere else. Pages that hold something else as well are kept, and so is all that is no
    map of a file.

    Args:
        start: Address of its first byte.
        nbytes: Its size in bytes.
        is_unwritten_for_certain: Whether nobody can have written there, so that the kernel need
            not be asked.
    """
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (start + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    for reference in _MAPS.valuerefs():
        mapped = reference()
        if (
            mapped is not None
            and first < end
            and 0 <= first - reference.key < len(mapped)
            and (is_unwritten_for_certain or is_unwritten(first, end))
        ):
            mapped.madvise(mmap.MADV_DONTNEED, first - reference.key, end - first)


def is_unwritten(first: int, end: int) -> bool:
    """Whether none of these pages of a private map is a copy of the process's own.

    The kernel alone knows: torch counts what is written by its operators, and neither what numpy
    or ``tensor.data`` writes nor what is written to another tensor of the storage.
    """
    count = (end - first) // mmap.PAGESIZE
    try:
        pages = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no /proc, or a kernel without it
        return False
    try:
        read = bytearray(count * _PAGEMAP_BYTES)
        if os.preadv(pages, [read], first // mmap.PAGESIZE * _PAGEMAP_BYTES) != len(read):
            return False
    except OSError:
        return False
    finally:
        os.close(pages)
    flags = torch.frombuffer(read, dtype=torch.int64)
    in_use = flags.bitwise_and(_PAGE_PRESENT | _PAGE_SWAPPED).ne(0)
    return not bool(in_use.logical_and(flags.bitwise_and(_PAGE_OF_FILE).eq(0)).any())
