"""Devices as torch has them: CUDA by its own module, others by the generic API of accelerators."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from craftcache.errors import DeviceLost, ResourceLimit

from .accelerator import DeviceWork, NoDeviceMemory, PinnedBuffer, Upload
from .cuda_uploads import find_uploads
from .pieces import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .accelerator import CopyStream, Mark
    from .cuda_uploads import CudaUploads

__all__ = ["TorchAccelerator", "copies_rightly", "find_accelerator"]


def find_accelerator(device: torch.device) -> TorchAccelerator | None:
    """What copies into ``device`` while nobody waits; None where plain copies have to do."""
    if device.type == "cuda":
        return TorchAccelerator(device, torch.cuda, uploads=find_uploads())
    if device.type in ("cpu", "meta") or not _is_usable(device.type):
        return None
    return TorchAccelerator(device, _GenericApi())


@cache
def _is_usable(kind: str) -> bool:
    """Whether it is the accelerator of this build of torch, and has what is asked of one."""
    api: Any = getattr(torch, "accelerator", None)  # torch 2.6 and newer
    current = api.current_accelerator() if api is not None else None
    if current is None or current.type != kind:
        return False
    try:
        return copies_rightly(TorchAccelerator(torch.device(kind), _GenericApi()))
    except Exception:  # noqa: BLE001  # a backend that lacks something raises nearly anything
        return False


def copies_rightly(accelerator: TorchAccelerator) -> bool:
    """Whether bytes that are sent to the device, and on from there, are those that come back."""
    with accelerator.entered():
        stream = accelerator.new_stream()
        buffer = accelerator.pin(PAGE_BYTES)
        buffer.view[:4] = b"\1\2\3\4"
        there, spread = accelerator.allocate(4), accelerator.allocate(4)
        uploads = [Upload(there, 0, 4)]
        work = DeviceWork(accelerator.mark(), buffer, uploads, [(spread, there)])
        stream.enqueue(work).wait()
        return bool(spread.cpu().tolist() == [1, 2, 3, 4])


class _GenericApi:
    """The names of torch.cuda that are used here, for any accelerator that torch knows of."""

    def __init__(self) -> None:
        self._api: Any = torch.accelerator
        self.Stream: Any = torch.Stream
        self.Event: Any = torch.Event
        self.current_stream: Any = self._api.current_stream
        self.device: Any = self._api.device_index
        self.current_device: Any = (
            getattr(self._api, "current_device_index", None) or self._api.current_device_idx
        )

    @staticmethod
    def stream(stream: Any) -> Any:  # noqa: ANN401  # a stream is its own context
        """A context in which ``stream`` is the current one."""
        return stream

    def empty_cache(self) -> None:
        """As torch.cuda's."""
        getattr(self._api, "empty_cache", lambda: None)()

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        """As torch.cuda's."""
        free, total = self._api.get_memory_info(device)
        return free, total


@contextlib.contextmanager
def _failures(device: torch.device) -> Iterator[None]:
    """Turn torch's errors into those that the protocol names.

    Raises:
        NoDeviceMemory: There is not enough for what was asked inside.
        DeviceLost: Anything else that the device said: none of its errors is a caller's here.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise NoDeviceMemory(str(error)) from None  # its frames would keep tensors alive
    except RuntimeError as error:
        lines = str(error).splitlines()
        if "out of memory" in str(error):  # of the driver itself
            raise NoDeviceMemory(lines[0]) from None
        raise DeviceLost(
            f"{device} failed ({lines[0] if lines else type(error).__name__})",
            hint="End this process and start it anew; if that fails too, look at the system's log",
        ) from error


class TorchAccelerator:
    """A device of torch's.

    Args:
        device: The device; without a number, the current one of its kind.
        api: torch.cuda, or something with the same names.
        lock_memory: Returns so many bytes of page-locked memory.
        uploads: Makes the copies; None has torch make them.
    """

    def __init__(
        self,
        device: torch.device,
        api: Any,  # noqa: ANN401  # as torch has it
        lock_memory: Callable[[int], torch.Tensor] | None = None,
        uploads: CudaUploads | None = None,
    ) -> None:
        self._api = api
        self._uploads = uploads
        self._lock_memory = lock_memory or _lock_memory
        index = api.current_device() if device.index is None else device.index
        self.device = torch.device(device.type, index)
        self.kind = device.type

    def entered(self) -> contextlib.AbstractContextManager[object]:
        """See Accelerator.entered."""
        entered: contextlib.AbstractContextManager[object] = self._api.device(self.device.index)
        return entered

    def new_stream(self) -> CopyStream:
        """See Accelerator.new_stream; torch has few, and hands the same ones out again."""
        with _failures(self.device):
            stream = self._api.Stream(device=self.device)
            return _TorchStream(self._api, self.device, stream, self._uploads)

    def mark(self) -> Mark:
        """See Accelerator.mark."""
        with _failures(self.device):
            return _TorchMark(self._api, self.device, self._api.current_stream(self.device))

    def allocate(self, nbytes: int) -> torch.Tensor:
        """See Accelerator.allocate."""
        with _failures(self.device):
            return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def pin(self, nbytes: int) -> PinnedBuffer:
        """See Accelerator.pin."""
        try:
            tensor = self._lock_memory(nbytes)
            if start := -tensor.data_ptr() % PAGE_BYTES:
                tensor = self._lock_memory(nbytes + PAGE_BYTES)
                start = -tensor.data_ptr() % PAGE_BYTES
        except RuntimeError as error:
            raise ResourceLimit(
                f"the system gives no page-locked memory ({str(error).splitlines()[0]})",
                hint="Give the process or its container more memory, or use fewer workers",
            ) from error
        tensor = tensor[start : start + nbytes]
        memory = (ctypes.c_char * nbytes).from_address(tensor.data_ptr())
        return PinnedBuffer(tensor, memoryview(memory).cast("B"), _return_pinned_memory)

    def free_bytes(self) -> int | None:
        """See Accelerator.free_bytes."""
        try:
            free, _ = self._api.mem_get_info(self.device)
        except (AttributeError, NotImplementedError, RuntimeError):
            return None
        return int(free)

    def give_back(self) -> None:
        """See Accelerator.give_back."""
        with contextlib.suppress(RuntimeError):
            self._api.empty_cache()


class _TorchStream:
    """See CopyStream."""

    def __init__(
        self,
        api: Any,  # noqa: ANN401  # as torch has it
        device: torch.device,
        stream: Any,  # noqa: ANN401
        uploads: CudaUploads | None,
    ) -> None:
        self._api = api
        self._device = device
        self._stream = stream
        self._uploads = uploads
        self._after: Mark | None = None
        """The last point that it was told to wait for."""
        if uploads is not None:
            uploads.bind(stream.cuda_stream)

    def enqueue(self, work: DeviceWork) -> Mark:
        """See CopyStream.enqueue."""
        with _failures(self._device):
            try:
                self._enqueue(work)
            except BaseException:  # a part of it may be under way
                with contextlib.suppress(RuntimeError):
                    self._stream.synchronize()
                raise
            return _TorchMark(self._api, self._device, self._stream)

    def _enqueue(self, work: DeviceWork) -> None:
        if work.after is not self._after and isinstance(work.after, _TorchMark):
            self._stream.wait_event(work.after.event)
            self._after = work.after
        if self._uploads is not None:
            self._uploads.copy(self._stream.cuda_stream, work.buffer, work.uploads)
            if not work.spreads:
                return
        memory = work.buffer.tensor
        uploads = [(each, memory[start : start + nbytes]) for each, start, nbytes in work.uploads]
        with torch.no_grad(), self._api.stream(self._stream):
            if self._uploads is None:
                for target, source in uploads:
                    target.copy_(source, non_blocking=True)
            if work.spreads:
                targets, sources = map(list, zip(*work.spreads, strict=True))
                torch._foreach_copy_(targets, sources)  # one kernel for all


class _TorchMark:
    """See Mark."""

    def __init__(self, api: Any, device: torch.device, stream: Any) -> None:  # noqa: ANN401
        self._device = device
        self.event = api.Event(blocking=True)  # whoever waits leaves the processor to the readers
        self.event.record(stream)

    def is_reached(self) -> bool:
        """See Mark.is_reached."""
        try:
            return bool(self.event.query())
        except RuntimeError:  # whoever waits is told
            return True

    def wait(self) -> None:
        """See Mark.wait."""
        with _failures(self._device):
            self.event.synchronize()


def _lock_memory(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)


def _return_pinned_memory() -> None:
    """Have torch give page-locked memory that nobody has back to the system, where it can."""
    api: Any = getattr(torch, "accelerator", None)
    empty = getattr(api, "empty_host_cache", None) or getattr(torch._C, "_host_emptyCache", None)  # noqa: SLF001
    if empty is not None:  # otherwise torch keeps it for its own next use
        with contextlib.suppress(RuntimeError):
            empty()
