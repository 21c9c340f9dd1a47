"""The memory of a CUDA device; see GpuMemory.

A file is copied by a few threads. Each reads a piece into page-locked memory while the piece before
is on its way to the device, from another buffer and on a stream of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Self

from craftcache.checkpoint.descriptor import read_into
from craftcache.device.accelerator import NoDeviceMemory
from craftcache.device.cuda_driver import CudaFailed
from craftcache.errors import ResourceLimit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from craftcache.device.cuda_driver import CudaDriver

__all__ = ["CudaMemory"]

PIECE_BYTES: Final = 16 * 1024 * 1024
"""Bytes of a buffer."""

FILLERS: Final = 4
"""Threads that copy a file."""

LEAST_DESCRIPTOR: Final = 3


class CudaMemory:
    """The first device that this process sees.

    Args:
        driver: CUDA's driver.

    Attributes:
        uuid: See GpuMemory.
        name: See GpuMemory.
        total_bytes: See GpuMemory.

    Raises:
        NoCudaDriver: There is no device, or none whose memory can be shared.
        CudaFailed: The device cannot be used.
    """

    ORDINAL: Final = 0

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self.device = driver.device(self.ORDINAL)
        self.uuid = driver.uuid(self.device)
        self.name = driver.name(self.device)
        # Kept for the life of the process: to make one takes longer than to copy a model.
        driver.checked(driver.api.cuDevicePrimaryCtxRetain(self.device))
        self.total_bytes = int(driver.checked(driver.api.cuDeviceTotalMem(self.device)))
        with driver.entered(self.device):
            self._granularity = driver.granularity(self.ORDINAL)

    def free_bytes(self) -> int | None:
        """See GpuMemory.free_bytes."""
        with self._driver.entered(self.device):
            free, _ = self._driver.checked(self._driver.api.cuMemGetInfo())
        return int(free)

    def block_bytes(self, size: int) -> int:
        """See GpuMemory.block_bytes."""
        return -(-size // self._granularity) * self._granularity

    def create(self, size: int) -> CudaBlock:
        """See GpuMemory.create."""
        nbytes = self.block_bytes(size)
        with self._driver.entered(self.device):
            handle = self._driver.create(nbytes, self.ORDINAL)
            try:
                descriptor = self._driver.exported(handle)
            except BaseException:
                self._driver.release(handle)
                raise
        return CudaBlock(self._driver, self.device, handle, descriptor, nbytes)


class CudaBlock:
    """See GpuBlock. It is mapped here only while bytes are copied.

    Args:
        driver: CUDA's driver.
        device: The device.
        handle: The driver's handle of the memory, which is this object's from now on.
        descriptor: Descriptor of the memory, likewise.
        nbytes: Size of the block.

    Attributes:
        nbytes: See GpuBlock.
    """

    def __init__(
        self,
        driver: CudaDriver,
        device: Any,  # noqa: ANN401  # a handle of the driver's
        handle: Any,  # noqa: ANN401  # likewise
        descriptor: int,
        nbytes: int,
    ) -> None:
        self._driver = driver
        self._device = device
        self._handle = handle
        self._descriptor = descriptor
        self.nbytes = nbytes

    def export(self) -> int:
        """See GpuBlock.export."""
        return fcntl.fcntl(self._descriptor, fcntl.F_DUPFD_CLOEXEC, LEAST_DESCRIPTOR)

    def close(self) -> None:
        """See GpuBlock.close."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            with contextlib.suppress(CudaFailed, NoDeviceMemory):  # of a device that has failed
                self._driver.release(self._handle)

    def fill(self, descriptor: int, size: int) -> None:
        """See GpuBlock.fill."""
        with self._mapped(writable=True) as address, ThreadPoolExecutor(FILLERS) as pool:
            filling = _Filling(self._driver, self._device, descriptor, size, address)
            for done in [pool.submit(filling.run) for _ in range(FILLERS)]:
                done.result()

    def sha256(self, size: int) -> str:
        """See GpuBlock.sha256."""
        driver = self._driver
        digest = hashlib.sha256()
        with self._mapped(writable=False) as address, _Lane(driver) as lane:
            pending: memoryview | None = None
            for start in range(0, size, PIECE_BYTES):
                view, buffer = lane.next_buffer()
                length = min(PIECE_BYTES, size - start)
                driver.checked(
                    driver.api.cuMemcpyDtoHAsync(buffer, address + start, length, lane.stream)
                )
                if pending is not None:  # hashed while the next piece comes
                    digest.update(pending)
                lane.wait()
                pending = view[:length]
            if pending is not None:
                digest.update(pending)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _mapped(self, *, writable: bool) -> Iterator[int]:
        driver = self._driver
        with driver.entered(self._device):
            address = driver.map(self._handle, self.nbytes, CudaMemory.ORDINAL, writable=writable)
            try:
                yield address
            finally:
                driver.unmap(address, self.nbytes)


class _Filling:
    """The copy of one file, for several threads."""

    def __init__(
        self,
        driver: CudaDriver,
        device: Any,  # noqa: ANN401  # a handle of the driver's
        descriptor: int,
        size: int,
        address: int,
    ) -> None:
        self._driver = driver
        self._device = device
        self._descriptor = descriptor
        self._size = size
        self._address = address
        self._starts = itertools.count(0, PIECE_BYTES)  # its next() is atomic
        self._failed = threading.Event()

    def run(self) -> None:
        """Copy pieces until there are none left, or another thread has failed."""
        driver = self._driver
        try:
            with driver.entered(self._device), _Lane(driver) as lane:
                while (start := next(self._starts)) < self._size and not self._failed.is_set():
                    view, buffer = lane.next_buffer()
                    length = min(PIECE_BYTES, self._size - start)
                    read_into(self._descriptor, view[:length], start)
                    lane.wait()  # so that the other buffer may be read into again
                    driver.checked(
                        driver.api.cuMemcpyHtoDAsync(
                            self._address + start, buffer, length, lane.stream
                        )
                    )
                lane.wait()
        except BaseException:
            self._failed.set()
            raise


class _Lane:
    """A stream and two page-locked buffers that are used in turn; a context manager."""

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self._life = contextlib.ExitStack()
        self._turn = 0

    def __enter__(self) -> Self:
        api, checked = self._driver.api, self._driver.checked
        with contextlib.ExitStack() as life:
            self.stream = checked(api.cuStreamCreate(0))
            life.callback(api.cuStreamDestroy, self.stream)
            self._buffers = []
            for _ in range(2):
                address = self._locked()
                life.callback(api.cuMemFreeHost, address)
                memory = (ctypes.c_char * PIECE_BYTES).from_address(address)
                self._buffers.append((memoryview(memory).cast("B"), address))
            self._life = life.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._driver.api.cuStreamSynchronize(self.stream)  # nothing copies from freed memory
        self._life.close()

    def _locked(self) -> int:
        try:
            return int(self._driver.checked(self._driver.api.cuMemHostAlloc(PIECE_BYTES, 0)))
        except NoDeviceMemory as error:  # the driver has one word for both
            raise ResourceLimit(
                f"the system gives no {PIECE_BYTES} bytes of page-locked memory",
                hint="Give the service of the GPU, or its container, more memory",
            ) from error

    def next_buffer(self) -> tuple[memoryview, int]:
        """The buffer that was not used last, and its address."""
        self._turn = 1 - self._turn
        return self._buffers[self._turn]

    def wait(self) -> None:
        """Wait until all that was enqueued is done."""
        self._driver.checked(self._driver.api.cuStreamSynchronize(self.stream))
