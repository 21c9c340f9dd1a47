"""The storages of a file, brought onto a device, while the tensors upon them are made already."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch

from craftcache.device.accelerator import NoDeviceMemory
from craftcache.device.file_reader import FileReader
from craftcache.device.pieces import cut
from craftcache.device.pipeline import CopyJob, Part

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craftcache.device.accelerator import Accelerator, Mark, PinnedBuffer
    from craftcache.device.link import DeviceLink
    from craftcache.device.pieces import FileSpan, Fragment, Piece
    from craftcache.device.pipeline import Pipeline

    from .index import Index, Storage

    Take: TypeAlias = Callable[[Storage, torch.dtype], torch.Tensor]

__all__ = ["bring"]

T = TypeVar("T")


def bring(
    index: Index,
    fd: int,
    link: DeviceLink,
    build: Callable[[Take], T],
    *,
    direct: bool,
    source: str | None,
) -> T:
    """What ``build`` returns, when all bytes of the file's storages have arrived on the device.

    Args:
        index: Index of the file.
        fd: The file, open for reading.
        link: The way to the device.
        build: Makes tensors. It gets a function that returns a storage as elements of a dtype,
            whose bytes may be on their way yet.
        direct: Whether to read past the page cache what is not in it.
        source: Named in errors.

    Raises:
        DeviceMemoryFull: They do not fit; nothing is left there, and a retry may help.
        DeviceLost: The device failed.
        EOFError, OSError: The file could not be read.
    """
    needed = sum(storage.nbytes for storage in index.storages)
    return link.placing(needed, source, partial(_bring, index, fd, link, build, direct=direct))


def _bring(
    index: Index,
    fd: int,
    link: DeviceLink,
    build: Callable[[Take], T],
    *,
    direct: bool,
) -> T:
    with FileReader(fd, index.file_size, direct=direct) as reader, link.open() as pipeline:
        arriving = _Arriving(index.storages, link.accelerator, reader)
        for piece in cut(index.storages, link.ring.buffer_bytes):
            if pipeline.failed:
                break
            arriving.submit(piece, pipeline)
        return build(arriving.take)


class _Arriving:
    """The storages of one load on the device, allocated when the first piece of each comes."""

    def __init__(
        self, storages: Sequence[Storage], accelerator: Accelerator, reader: FileReader
    ) -> None:
        self._accelerator = accelerator
        self._storages = storages
        self._reader = reader
        self._placed: dict[Storage, torch.Tensor] = {}
        self._staging: torch.Tensor | None = None
        self._mark: Mark | None = None
        """The point from which all that was allocated may be written to; None if it is later."""

    def submit(self, piece: Piece, pipeline: Pipeline) -> None:
        parts = [self._part(fragment) for fragment in piece.fragments]
        staging = self._staging_of(piece.used) if piece.together and len(parts) > 1 else None
        readings = [_FileReading(self._reader, span) for span in piece.spans]
        if self._mark is None:
            self._mark = self._accelerator.mark()
        pipeline.submit(CopyJob(readings, parts, self._mark, piece.used, staging))

    def _part(self, fragment: Fragment) -> Part:
        storage = self._storages[fragment.storage]
        placed = self._placed.get(storage)
        if placed is None:
            placed = self._placed[storage] = self._allocate(storage.nbytes)
        end = fragment.start + fragment.nbytes
        target = placed[fragment.start : end]
        return Part(target, torch.uint8, fragment.position, fragment.nbytes)

    def _staging_of(self, nbytes: int) -> torch.Tensor | None:
        """Memory for small storages on their way; None where they fill the device to the brim."""
        if self._staging is None or self._staging.numel() < nbytes:
            with suppress(NoDeviceMemory):
                self._staging = self._allocate(nbytes)
                return self._staging
            return None
        return self._staging

    def _allocate(self, nbytes: int) -> torch.Tensor:
        self._mark = None
        return self._accelerator.allocate(nbytes)

    def take(self, storage: Storage, dtype: torch.dtype) -> torch.Tensor:
        """All of a storage as elements of ``dtype``; its own storage, of exactly that size."""
        device = self._accelerator.device
        placed = self._placed.get(storage)
        if placed is None:  # an empty one, or nothing arrives any more
            placed = torch.empty(storage.nbytes, dtype=torch.uint8, device=device)
        return torch.empty(0, dtype=dtype, device=device).set_(placed.untyped_storage())


class _FileReading:
    """A span of the file; see Reading."""

    __slots__ = ("_reader", "_span")

    def __init__(self, reader: FileReader, span: FileSpan) -> None:
        self._reader = reader
        self._span = span

    def fill(self, buffer: PinnedBuffer) -> None:
        span = self._span
        view = buffer.view[span.position : span.position + span.nbytes]
        self._reader.read(view, span.offset)
