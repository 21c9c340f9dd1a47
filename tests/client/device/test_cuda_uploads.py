"""What the driver is told of a copy, with functions of C in its place that copy on the CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from craftcache.device.accelerator import DeviceWork, NoDeviceMemory, Upload
from craftcache.device.cuda_uploads import CudaUploads, find_uploads
from craftcache.device.torch_accelerator import TorchAccelerator
from craftcache.errors import DeviceLost
from tests.client.device.test_torch_accelerator import StandIn, unaligned

STREAM, CONTEXT = 0x51, 0xC7
ILLEGAL_ADDRESS = 700
NAMES = {ILLEGAL_ADDRESS: b"CUDA_ERROR_ILLEGAL_ADDRESS"}


class Library:
    """The driver's functions, as its library has them.

    Args:
        result: What a copy returns.
    """

    def __init__(self, result: int = 0) -> None:
        pointer, size, code = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        self.copies: list[tuple[int, int]] = []
        self.contexts: list[int | None] = []
        self._result = result
        to_copy = ctypes.CFUNCTYPE(code, ctypes.c_uint64, pointer, size, pointer)
        self.cuMemcpyHtoDAsync_v2 = to_copy(self._copy)
        to_ask = ctypes.CFUNCTYPE(code, pointer, ctypes.POINTER(pointer))
        self.cuStreamGetCtx = to_ask(self._context_of)
        self.cuCtxSetCurrent = ctypes.CFUNCTYPE(code, pointer)(self._set_context)
        to_name = ctypes.CFUNCTYPE(code, code, ctypes.POINTER(ctypes.c_char_p))
        self.cuGetErrorName = to_name(self._name_of)

    def _copy(self, target: int, source: int, nbytes: int, stream: int) -> int:
        self.copies.append((nbytes, stream))
        if not self._result:
            ctypes.memmove(target, source, nbytes)
        return self._result

    def _context_of(self, stream: int, context: Any) -> int:
        assert stream == STREAM
        context[0] = CONTEXT
        return 0

    def _set_context(self, context: int | None) -> int:
        self.contexts.append(context)
        return 0

    def _name_of(self, code: int, name: Any) -> int:
        if code in NAMES:
            name[0] = NAMES[code]
        return 0


class Streaming(StandIn):
    """A stream that has a handle of the driver's."""

    cuda_stream = STREAM


def accelerator_of(library: Any) -> TorchAccelerator:
    uploads = CudaUploads(library)
    return TorchAccelerator(
        torch.device("cpu"), Streaming(), lock_memory=unaligned, uploads=uploads
    )


def work_of(accelerator: TorchAccelerator) -> tuple[DeviceWork, torch.Tensor, torch.Tensor]:
    buffer = accelerator.pin(4096)
    buffer.view[:4096] = bytes(range(256)) * 16
    one, two = accelerator.allocate(100), accelerator.allocate(7)
    uploads = [Upload(one, 300, 100), Upload(two, 5, 7)]
    return DeviceWork(accelerator.mark(), buffer, uploads), one, two


def test_the_driver_copies_each_in_the_context_of_the_stream() -> None:
    library = Library()
    accelerator = accelerator_of(library)
    work, one, two = work_of(accelerator)
    accelerator.new_stream().enqueue(work).wait()
    assert one.tolist() == list(range(44, 144))
    assert two.tolist() == list(range(5, 12))
    assert library.copies == [(100, STREAM), (7, STREAM)]
    assert library.contexts == [CONTEXT]


@pytest.mark.parametrize(
    ("result", "error", "said"),
    [
        (2, NoDeviceMemory, "out of memory"),
        (ILLEGAL_ADDRESS, DeviceLost, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        (9999, DeviceLost, "CUDA error: unknown"),
    ],
)
def test_what_the_driver_refuses_is_an_error_and_nothing_of_it_goes_on(
    result: int, error: type[Exception], said: str
) -> None:
    accelerator = accelerator_of(Library(result))
    stream = accelerator.new_stream()
    work, _, _ = work_of(accelerator)
    api: Any = stream
    api = api._api
    api.calls.clear()
    with pytest.raises(error, match=said):
        stream.enqueue(work)
    assert api.calls == ["wait_event", "synchronize"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_torch_copies() -> None:
    assert find_uploads() is None
