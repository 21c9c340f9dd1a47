"""Copies of a state dict's tensors into tensors on devices, many at once.

A module's load_state_dict copies one tensor after the other. Here a copy to a device is only noted,
and goes through a pipeline while load_state_dict goes on: cast on the device, by way of one staging
buffer there. Whatever else torch is asked for while copies are under way waits for them first, so
that hooks see, and change, what they would have seen and changed without any of this.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.overrides import TorchFunctionMode

from craftcache.device.pieces import PAGE_BYTES, SMALL_BYTES
from craftcache.device.pipeline import CopyJob, Part

from .mapped import is_unwritten, release_span
from .storages import storage_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.multiprocessing.reductions import StorageWeakRef
    from typing_extensions import Self

    from craftcache.device.accelerator import PinnedBuffer
    from craftcache.device.file_reader import FileReader
    from craftcache.device.link import DeviceLink

__all__ = ["CopyingMode", "DeviceCopies", "MappedFile"]

_PLAIN: Final = (torch.Tensor, torch.nn.Parameter)
"""Subclasses may do anything with a copy."""

_ALIGNMENT: Final = 16
"""Bytes of the largest element of any dtype."""

_LOOKS: Final = frozenset(
    {
        torch._C._set_grad_enabled,  # noqa: SLF001  # what torch.no_grad comes down to
        *(
            getattr(torch.Tensor, name).__get__
            for name in ("device", "dtype", "is_meta", "layout", "ndim", "requires_grad", "shape")
        ),
    }
)
"""What load_state_dict calls between copies that neither reads nor changes any value."""

_HANDS_OUT: Final = frozenset(
    {
        torch.Tensor.numpy,
        torch.Tensor.__array__,
        torch.Tensor.__dlpack__,
        torch.Tensor.data_ptr,
        torch.Tensor.storage,
        torch.Tensor.untyped_storage,
    }
)
"""What gives memory out of torch's hands: nobody can tell afterwards when it is written to."""


class MappedFile:
    """A file that is mapped, and a reader of it: what is read need not come through the map.

    Args:
        address: Address of the map.
        size: Size of the file, and of the map, in bytes.
        reader: Reader of the file.
    """

    def __init__(self, address: int, size: int, reader: FileReader) -> None:
        self._address = address
        self._size = size
        self._reader = reader

    def offset_of(self, address: int) -> int | None:
        """The place in the file of an address; None if that is not in the map."""
        offset = address - self._address
        return offset if 0 <= offset < self._size else None

    def read(self, view: memoryview, offset: int) -> None:
        """See FileReader.read."""
        self._reader.read(view, offset)


class DeviceCopies:
    """The copies that are under way; a context, whose end is theirs.

    It belongs to one thread.

    Args:
        find_link: Returns the way to a device; None where plain copies have to do.
        file: The file that sources lie in, where it may still be read.
        source: Named in errors.
    """

    def __init__(
        self,
        find_link: Callable[[torch.device], DeviceLink | None],
        *,
        file: MappedFile | None = None,
        source: str | None = None,
    ) -> None:
        self._find_link = find_link
        self._file = file
        self._source = source
        self._to: dict[torch.device, _CopiesTo | None] = {}
        self.at_once = False
        """Whether each copy is waited for, since memory was handed out."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """End all copies.

        Raises:
            DeviceMemoryFull, DeviceLost, EOFError, OSError: A copy failed, and that is what a
                RuntimeError of load_state_dict comes from, if there is one.
        """
        ended = [copies.end(error) for copies in self._to.values() if copies is not None]
        failures = [failure for failure in ended if failure is not None]
        self._to.clear()
        if failures and (error is None or isinstance(error, RuntimeError)):
            raise failures[0] from None

    def take(self, target: torch.Tensor, source: torch.Tensor) -> bool:
        """Note a copy, to be made soon; False where it is left to torch."""
        copies = self._copies_to(target.device)
        if copies is None or not _can_take(target, source):
            return False
        copies.add(target.detach().view(-1), source.detach().view(-1))
        if self.at_once:
            copies.flush()
        return True

    def flush(self) -> None:
        """Wait until the devices have made all copies, or one has failed."""
        for copies in self._to.values():
            if copies is not None:
                copies.flush()

    def _copies_to(self, device: torch.device) -> _CopiesTo | None:
        if device not in self._to:
            link = self._find_link(device)
            self._to[device] = _CopiesTo(link, self._file, self._source) if link else None
        return self._to[device]


class CopyingMode(TorchFunctionMode):
    """While it is entered, this thread's copies are offered to ``copies``, entered before it.

    Args:
        copies: Where copies to devices go.
    """

    def __init__(self, copies: DeviceCopies) -> None:
        super().__init__()
        self._copies = copies

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> bool:
        """Make or note a copy without further arguments; False leaves it to torch."""
        return self._copies.take(target, source)

    def copied(self, source: torch.Tensor) -> None:
        """Called after each copy that was made as ever."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        _: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if func is torch.Tensor.copy_ and len(args) > 1:
            if len(args) == 2 and not kwargs and self.copy(*args):
                return args[0]
            self._copies.flush()
            result = func(*args, **(kwargs or {}))
            self.copied(args[1])
            return result
        if func not in _LOOKS:
            self._copies.flush()
            if func in _HANDS_OUT:
                self._copies.at_once = True
        return func(*args, **(kwargs or {}))


def _can_take(target: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether the copy is one of flat memory to flat memory, from the CPU."""
    return (
        type(target) in _PLAIN
        and type(source) in _PLAIN
        and source.device.type == "cpu"
        and target.layout is source.layout is torch.strided
        and target.shape == source.shape
        and source.numel() > 0
        and target.is_contiguous()
        and source.is_contiguous()
        and not (target.is_quantized or source.is_quantized)
        and not (target.is_conj() or source.is_conj() or target.is_neg() or source.is_neg())
        and (source.dtype.is_complex <= target.dtype.is_complex)  # torch warns of what is lost
    )


class _CopiesTo:
    """The copies to one device."""

    def __init__(self, link: DeviceLink, file: MappedFile | None, source: str | None) -> None:
        self._link = link
        self._file = file
        self._source = source
        self._pipeline = link.open()
        self._pipeline.__enter__()
        self._staging: torch.Tensor | None = None
        self._staging_bytes = link.ring.buffer_bytes
        self._targets: set[StorageWeakRef] = set()
        """Memory that copies under way go to: a second one to it comes after the first."""
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
        if source.nbytes <= SMALL_BYTES:
            self._add_small(target, source)
            return
        room = (self._link.ring.buffer_bytes - 2 * PAGE_BYTES) // _ALIGNMENT * _ALIGNMENT
        length = room // source.itemsize
        is_cast = target.dtype is not source.dtype
        for start in range(0, source.numel(), length):
            part, goal = source[start : start + length], target[start : start + length]
            reading = _Reading(part, self._file)
            parts = [_part(goal, part, reading.position)]
            used = reading.position + part.nbytes
            self._submit([reading], parts, used, staged=is_cast)

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
            readings.append(_Reading(source, None, position))
            parts.append(_part(target, source, position))
            position += -(-source.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._small, self._small_bytes = [], 0
        if readings:
            self._submit(readings, parts, position, staged=True)

    def _submit(
        self, readings: Sequence[_Reading], parts: Sequence[Part], used: int, *, staged: bool
    ) -> None:
        if staged and self._staging is None:
            self._staging = self._link.accelerator.allocate(self._staging_bytes)
        after = self._link.accelerator.mark()
        staging = self._staging if staged else None
        self._pipeline.submit(CopyJob(readings, parts, after, used, staging))

    def flush(self) -> None:
        """Wait until all copies are made, or one has failed."""
        if not self._targets:
            return
        try:
            self._send_small()
            self._pipeline.drain()
        except Exception as error:  # noqa: BLE001  # end tells
            self._failure = error
        self._targets.clear()

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


def _part(target: torch.Tensor, source: torch.Tensor, position: int) -> Part:
    if target.dtype is source.dtype:
        return Part(target.view(torch.uint8), torch.uint8, position, source.nbytes)
    return Part(target, source.dtype, position, source.nbytes)


class _Reading:
    """A flat tensor in memory, which may lie in a mapped file; see Reading.

    Args:
        tensor: The tensor.
        file: The file that it may lie in.
        position: Place in the buffer; of what lies in the file, a place in the first page.
    """

    __slots__ = ("_file", "_offset", "_tensor", "position")

    def __init__(self, tensor: torch.Tensor, file: MappedFile | None, position: int = 0) -> None:
        self._tensor = tensor
        self._file = file
        self._offset = file.offset_of(tensor.data_ptr()) if file else None
        self.position = position if self._offset is None else self._offset % PAGE_BYTES

    def fill(self, buffer: PinnedBuffer) -> None:
        start, nbytes = self._tensor.data_ptr(), self._tensor.nbytes
        if self._file and self._offset is not None and _is_as_in_the_file(start, nbytes):
            end = -(-(self.position + nbytes) // PAGE_BYTES) * PAGE_BYTES
            self._file.read(buffer.view[:end], self._offset - self.position)
            return
        ctypes.memmove(buffer.tensor.data_ptr() + self.position, start, nbytes)
        if nbytes > SMALL_BYTES:
            release_span(start, nbytes)


def _is_as_in_the_file(start: int, nbytes: int) -> bool:
    """Whether nothing has written to the pages of a map that hold this part of memory."""
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    end = -(-(start + nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    return is_unwritten(first, end)
