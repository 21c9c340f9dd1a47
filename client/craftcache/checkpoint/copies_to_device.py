"""Copies of tensors in memory to one device, gathered into what one buffer holds.

What lies side by side in a mapped file goes through one buffer, read from the file at once; a large
tensor goes through several. Small tensors, wherever they are, are one transfer together.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from craftcache.device.copy_job import CopyJob, Part
from craftcache.device.pieces import PAGE_BYTES, SMALL_BYTES

from .mapped import is_unwritten, release_span
from .storages import storage_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.multiprocessing.reductions import StorageWeakRef

    from craftcache.device.accelerator import Mark, PinnedBuffer
    from craftcache.device.copy_job import Reading
    from craftcache.device.file_reader import FileReader
    from craftcache.device.link import DeviceLink

__all__ = ["CopiesToDevice", "MappedFile"]

_ALIGNMENT: Final = 16
"""Bytes of the largest element of any dtype."""

_GAP_BYTES: Final = 64 * 1024
"""Bytes between two tensors of the file that are rather read than skipped."""


class MappedFile:
    """A file that is mapped, and a reader of it: what is read need not come through the map.

    Args:
        address: Address of the map.
        size: Size of the file, and of the map, in bytes.
        reader: Reader of the file.
        is_unwritten: Whether nobody can have written to the map; otherwise the kernel is asked.
    """

    def __init__(
        self, address: int, size: int, reader: FileReader, *, is_unwritten: bool = False
    ) -> None:
        self._address = address
        self._size = size
        self._reader = reader
        self._is_unwritten = is_unwritten

    def offset_of(self, address: int) -> int | None:
        """The place in the file of an address; None if that is not in the map."""
        offset = address - self._address
        return offset if 0 <= offset < self._size else None

    def read(self, buffer: PinnedBuffer, offset: int, nbytes: int) -> None:
        """Fill a buffer from its beginning with what the map has there.

        Args:
            buffer: Where to.
            offset: Place in the file; it and ``nbytes`` are multiples of PAGE_BYTES.
            nbytes: Size in bytes; it may reach beyond the end of the file.

        Raises:
            EOFError, OSError: See FileReader.read.
        """
        start = self._address + offset
        if self._is_unwritten or is_unwritten(start, start + nbytes):
            self._reader.read(buffer.view[:nbytes], offset)
        else:
            length = min(nbytes, self._size - offset)
            ctypes.memmove(buffer.tensor.data_ptr(), start, length)


class CopiesToDevice:
    """The copies to one device; it belongs to one thread.

    Args:
        link: The way to the device.
        file: The file that sources may lie in; None if there is none.
        source: Named in errors.
    """

    def __init__(self, link: DeviceLink, file: MappedFile | None, source: str | None) -> None:
        self._link = link
        self._file = file
        self._source = source
        self._pipeline = link.open()
        self._pipeline.__enter__()
        self._staging: torch.Tensor | None = None
        self._staging_bytes = link.ring.buffer_bytes
        self._mark: Mark | None = None
        """The point from which all targets may be written to; None if it is later."""
        self._targets: set[StorageWeakRef] = set()
        """Memory that copies under way go to: a second one to it comes after the first."""
        self._window: _Window | None = None
        self._small: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._small_bytes = 0
        self._failure: Exception | None = None
        """What a flush has found to have failed."""

    def add(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Begin a copy, of flat tensors; what goes wrong, ``end`` tells."""
        try:
            self._add(target, source)
        except Exception as error:  # noqa: BLE001  # load_state_dict would make its own of it
            self._pipeline.fail(error)

    def _add(self, target: torch.Tensor, source: torch.Tensor) -> None:
        if self._pipeline.failed:
            return
        memory = storage_of(target)
        if memory in self._targets:
            self.flush()
        self._targets.add(memory)
        _count_change(target)
        if source.nbytes <= SMALL_BYTES:
            self._add_small(target, source)
        elif self._file and (offset := self._file.offset_of(source.data_ptr())) is not None:
            self._add_from_file(self._file, offset, target, source)
        else:
            self._add_from_memory(target, source)

    def _add_from_file(
        self, file: MappedFile, offset: int, target: torch.Tensor, source: torch.Tensor
    ) -> None:
        start, size = 0, source.itemsize
        while start < source.numel():
            place = offset + start * size
            window = self._window
            room = window.room_at(place) if window is not None else 0
            if window is None or room < SMALL_BYTES:
                self._send_window()
                window = self._window = _Window(file, place, self._link.ring.buffer_bytes)
                room = window.room_at(place)
            end = min(source.numel(), start + room // size)
            window.add(place, target[start:end], source[start:end])
            start = end

    def _add_from_memory(self, target: torch.Tensor, source: torch.Tensor) -> None:
        length = self._link.ring.buffer_bytes // source.itemsize
        is_cast = target.dtype is not source.dtype
        for start in range(0, source.numel(), length):
            part, goal = source[start : start + length], target[start : start + length]
            self._submit([_Reading(part)], [_part(goal, part, 0)], part.nbytes, staged=is_cast)

    def _add_small(self, target: torch.Tensor, source: torch.Tensor) -> None:
        length = -(-source.nbytes // _ALIGNMENT) * _ALIGNMENT
        if self._small_bytes + length > self._link.ring.buffer_bytes:
            self._send_small()
        self._small.append((target, source))
        self._small_bytes += length

    def _send_small(self) -> None:
        """Have all small ones copied, in one transfer."""
        position, readings, parts = 0, [], []
        for target, source in self._small:
            readings.append(_Reading(source, position))
            parts.append(_part(target, source, position))
            position += -(-source.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._small, self._small_bytes = [], 0
        if readings:
            self._submit(readings, parts, position, staged=True)

    def _send_window(self) -> None:
        """Have all of the window copied."""
        window, self._window = self._window, None
        if window is not None:
            self._submit([window], window.parts, window.used, staged=window.is_cast)

    def _submit(
        self, readings: Sequence[Reading], parts: Sequence[Part], used: int, *, staged: bool
    ) -> None:
        if staged and self._staging is None:
            self._staging = self._link.accelerator.allocate(self._staging_bytes)
            self._mark = None
        if self._mark is None:
            self._mark = self._link.accelerator.mark()
        staging = self._staging if staged else None
        self._pipeline.submit(CopyJob(readings, parts, self._mark, used, staging))

    def flush(self) -> None:
        """Wait until all copies are made, or one has failed."""
        if not self._targets:
            return
        try:
            self._send_window()
            self._send_small()
            self._pipeline.drain()
        except Exception as error:  # noqa: BLE001  # end tells
            self._failure = error
        self._targets.clear()
        self._mark = None  # what is flushed for may use the targets

    def end(self, error: BaseException | None) -> BaseException | None:
        """End all copies, or give them up for an interrupt; returns what failed, or None."""
        given_up = None if isinstance(error, Exception) else error
        if given_up is None:  # what load_state_dict finds wrong keeps no other tensor from its copy
            self.flush()
        try:
            self._link.placing(self._staging_bytes, self._source, partial(self._end, given_up))
        except Exception as failure:  # noqa: BLE001  # it is returned
            return failure
        return None

    def _end(self, given_up: BaseException | None) -> None:
        failure, self._failure = self._failure, None
        self._pipeline.__exit__(type(given_up) if given_up else None, given_up, None)
        if failure is not None:
            raise failure


def _count_change(target: torch.Tensor) -> None:
    """Have autograd know that a tensor is written to, which not all copies tell it."""
    increment = getattr(torch.autograd.graph, "increment_version", None)  # torch 2.2 and newer
    if increment is not None:
        increment(target)
    else:
        target[:0].zero_()


@dataclass(slots=True)
class _Window:
    """Part of a mapped file that goes through one buffer; see Reading.

    Args:
        file: The file.
        offset: Place in the file of what comes first.
        nbytes: Size of the buffer.
    """

    file: MappedFile
    offset: int
    nbytes: int
    parts: list[Part] = field(default_factory=list)
    used: int = 0
    """Bytes of the buffer up to the end of the last part."""
    is_cast: bool = False
    """Whether a part has another dtype than its target."""

    def __post_init__(self) -> None:
        self.offset = self.offset // PAGE_BYTES * PAGE_BYTES

    def room_at(self, place: int) -> int:
        """Bytes that go into the buffer from that place of the file on; 0 if it lies elsewhere."""
        position = place - self.offset
        lies_elsewhere = self.parts and not self.used <= position <= self.used + _GAP_BYTES
        return 0 if lies_elsewhere else max(0, self.nbytes - position)

    def add(self, place: int, target: torch.Tensor, source: torch.Tensor) -> None:
        """Have a flat tensor of the file copied, for which there is room."""
        position = place - self.offset
        self.parts.append(_part(target, source, position))
        self.used = position + source.nbytes
        self.is_cast = self.is_cast or target.dtype is not source.dtype

    def fill(self, buffer: PinnedBuffer) -> None:
        nbytes = -(-self.used // PAGE_BYTES) * PAGE_BYTES
        self.file.read(buffer, self.offset, nbytes)


def _part(target: torch.Tensor, source: torch.Tensor, position: int) -> Part:
    if target.dtype is source.dtype:
        return Part(target.view(torch.uint8), torch.uint8, position, source.nbytes)
    return Part(target, source.dtype, position, source.nbytes)


class _Reading:
    """A flat tensor in memory; see Reading.

    Args:
        tensor: The tensor.
        position: Place in the buffer.
    """

    __slots__ = ("_position", "_tensor")

    def __init__(self, tensor: torch.Tensor, position: int = 0) -> None:
        self._tensor = tensor
        self._position = position

    def fill(self, buffer: PinnedBuffer) -> None:
        start, nbytes = self._tensor.data_ptr(), self._tensor.nbytes
        ctypes.memmove(buffer.tensor.data_ptr() + self._position, start, nbytes)
        if nbytes > SMALL_BYTES:
            release_span(start, nbytes)
