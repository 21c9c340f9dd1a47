"""Copies by the CUDA driver itself, from memory that torch has page-locked to memory that it has.

torch's own ``copy_`` takes three times as long to tell the driver of a copy, all of it with
Python's lock held, which the readers of a load want. torch does not know of what is copied so:
whoever uses this keeps both ends until the stream is through.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .accelerator import PinnedBuffer, Upload

__all__ = ["CudaUploads", "find_uploads"]

_OUT_OF_MEMORY: Final = 2
"""CUDA_ERROR_OUT_OF_MEMORY, from cuda.h."""


class CudaUploads:
    """The driver's functions.

    Args:
        library: The driver's library.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._copy = library.cuMemcpyHtoDAsync_v2
        self._copy.argtypes = [ctypes.c_uint64, pointer, size, pointer]
        self._context_of = library.cuStreamGetCtx
        self._context_of.argtypes = [pointer, ctypes.POINTER(pointer)]
        self._set_context = library.cuCtxSetCurrent
        self._set_context.argtypes = [pointer]
        self._name_of = library.cuGetErrorName
        self._name_of.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]

    def bind(self, stream: int) -> None:
        """Make the stream's context the calling thread's: torch may not have made one for it yet.

        Raises:
            RuntimeError: As torch says what the device says.
        """
        context = ctypes.c_void_p()
        self._check(self._context_of(stream, ctypes.byref(context)))
        self._check(self._set_context(context))

    def copy(self, stream: int, buffer: PinnedBuffer, uploads: Iterable[Upload]) -> None:
        """Enqueue copies; the calling thread has ``bind`` behind it.

        Raises:
            RuntimeError: As torch says what the device says.
        """
        source = buffer.tensor.data_ptr()
        for target, position, nbytes in uploads:
            self._check(self._copy(target.data_ptr(), source + position, nbytes, stream))

    def _check(self, result: int) -> None:
        if not result:
            return
        if result == _OUT_OF_MEMORY:
            raise RuntimeError("CUDA error: out of memory")
        name = ctypes.c_char_p()
        self._name_of(result, ctypes.byref(name))
        raise RuntimeError(f"CUDA error: {(name.value or b'unknown').decode()}")


@cache
def find_uploads() -> CudaUploads | None:
    """The driver that this process's torch uses; None where it uses another, or it has not all."""
    if torch.version.cuda is None:  # torch.cuda is that of another vendor, or of none
        return None
    loader: Any = ctypes.CDLL  # waits for the driver without Python's lock
    try:
        return CudaUploads(loader("libcuda.so.1"))
    except (OSError, AttributeError):
        return None
