"""The storages of a file, brought onto a device, while the tensors upon them are made already."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch

from craftcache.device.accelerator import NoDeviceMemory
from craftcache.device.copy_job import CopyJob, Part
from craftcache.device.file_reader import FileReader
from craftcache.device.pieces import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craftcache.device.accelerator import Accelerator, PinnedBuffer
    from craftcache.device.link import DeviceLink
    from craftcache.device.pieces import FileSpan, Fragment, Piece

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
    pieces = list(cut(index.storages, link.ring.buffer_bytes))
    with FileReader(fd, index.file_size, direct=direct) as reader:
        arriving = _Arriving(index.storages, pieces, link.accelerator, reader)
        with link.open() as pipeline:
            for piece in pieces:
                if pipeline.failed:
                    break
                pipeline.submit(arriving.job(piece))
            return build(arriving.take)


class _Arriving:
    """The storages of one load on the device.

    All are allocated before the first is copied: see pipeline on who may ask the driver meanwhile.

    Raises:
        NoDeviceMemory, DeviceLost: See Accelerator.allocate.
    """

    def __init__(
        self,
        storages: Sequence[Storage],
        pieces: Sequence[Piece],
        accelerator: Accelerator,
        reader: FileReader,
    ) -> None:
        self._device = accelerator.device
        self._storages = storages
        self._reader = reader
        self._placed = {
            storage: accelerator.allocate(storage.nbytes) for storage in storages if storage.nbytes
        }
        self._staging: torch.Tensor | None = None
        """Memory for small storages on their way; None where they fill the device to the brim."""
        if together := [piece.used for piece in pieces if _is_staged(piece)]:
            with suppress(NoDeviceMemory):
                self._staging = accelerator.allocate(max(together))
        self._mark = accelerator.mark()

    def job(self, piece: Piece) -> CopyJob:
        parts = [self._part(fragment) for fragment in piece.fragments]
        readings = [_FileReading(self._reader, span) for span in piece.spans]
        staging = self._staging if _is_staged(piece) else None
        return CopyJob(readings, parts, self._mark, piece.used, staging)

    def _part(self, fragment: Fragment) -> Part:
        placed = self._placed[self._storages[fragment.storage]]
        end = fragment.start + fragment.nbytes
        target = placed[fragment.start : end]
        return Part(target, torch.uint8, fragment.position, fragment.nbytes)

    def take(self, storage: Storage, dtype: torch.dtype) -> torch.Tensor:
        """All of a storage as elements of ``dtype``; its own storage, of exactly that size."""
        placed = self._placed.get(storage)
        if placed is None:  # an empty one
            placed = torch.empty(0, dtype=torch.uint8, device=self._device)
        return torch.empty(0, dtype=dtype, device=self._device).set_(placed.untyped_storage())


def _is_staged(piece: Piece) -> bool:
    return piece.together and len(piece.fragments) > 1


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
