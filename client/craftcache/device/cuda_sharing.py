"""Shared memory of a CUDA device, mapped into this process and seen by torch as ordinary tensors.

The map is for reading alone. What writes to it, in a kernel or by a copy, fails with an illegal
memory access, and as after any other the process's CUDA context is lost.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from .accelerator import NoDeviceMemory
from .cuda_driver import CudaDriver, CudaFailed, NoCudaDriver
from .sharing import NotShared, SharedDevice

if TYPE_CHECKING:
    from .sharing import Lease

__all__ = ["CudaMapper", "cuda_device"]


def cuda_device(device: torch.device) -> SharedDevice:
    """The shared memory of a CUDA device.

    Raises:
        NotShared: cuda-bindings or numpy is missing, or the driver does not do it.
    """
    if find_spec("numpy") is None:  # torch takes no foreign memory without it
        raise NotShared("numpy is not installed", "pip install numpy")
    ordinal = torch.cuda.current_device() if device.index is None else device.index
    try:
        driver = CudaDriver.load()
        handle = driver.device(ordinal)
        uuid = driver.uuid(handle)
    except (NoCudaDriver, CudaFailed) as error:
        hint = "It takes NVIDIA's driver, and what craftcache[gpu] installs beside torch"
        raise NotShared(str(error), hint) from error
    return SharedDevice(uuid, CudaMapper(driver, handle, torch.device("cuda", ordinal)))


class CudaMapper:
    """See SharedMapper.

    Args:
        driver: CUDA's driver.
        handle: The driver's handle of the device.
        device: The device by torch's number, which is the driver's.
    """

    def __init__(self, driver: CudaDriver, handle: Any, device: torch.device) -> None:  # noqa: ANN401
        self._driver = driver
        self._handle = handle
        self._device = device

    def map(self, descriptor: int, nbytes: int, lease: Lease) -> SharedMapping:
        """See SharedMapper.map."""
        driver = self._driver
        try:
            with driver.entered(self._handle):
                memory = driver.imported(descriptor)
                try:
                    ordinal = int(self._handle)  # what the driver's handles of devices are
                    address = driver.map(memory, nbytes, ordinal, writable=False)
                finally:
                    driver.release(memory)  # the map keeps the memory
        except (CudaFailed, NoDeviceMemory) as error:
            raise NotShared(
                f"the driver does not map the memory of {self._device} ({error})",
                "Look at the system's log, and update the driver if it is old",
            ) from error
        return SharedMapping(driver, self._handle, self._device, address, nbytes, lease)


class SharedMapping:
    """A map of a block of a device's memory; see SharedSpans.

    At the end of the interpreter, and in a forked child, nothing is asked of CUDA: the first would
    find it torn down, the second may not use it. The kernel removes the map with the process.

    Args:
        driver: CUDA's driver.
        handle: The driver's handle of the device.
        device: The device.
        address: Where the map is.
        nbytes: Its size.
        lease: Closed after the map was removed.
    """

    def __init__(
        self,
        driver: CudaDriver,
        handle: Any,  # noqa: ANN401  # of the driver's
        device: torch.device,
        address: int,
        nbytes: int,
        lease: Lease,
    ) -> None:
        self._driver = driver
        self._handle = handle
        self._device = device
        self._address = address
        self._nbytes = nbytes
        self._lease = lease
        self._process = os.getpid()
        self._has_ended = False

    def span(self, offset: int, nbytes: int) -> torch.Tensor:
        """See SharedSpans.span."""
        span = _Span(self, self._address + offset, nbytes)
        try:
            return torch.as_tensor(span, device=self._device)
        except RuntimeError as error:
            self._end()  # torch keeps what it has failed to take; the load has no tensor yet
            raise NotShared(
                f"torch does not take the memory ({str(error).splitlines()[0]})",
                "Install a numpy that this torch was built for",
            ) from error

    def __del__(self) -> None:
        # It may run in any thread, in the middle of anything: it takes no lock.
        if not sys.is_finalizing() and os.getpid() == self._process:
            self._end()

    def _end(self) -> None:
        """Remove the map and close the lease; more than once does no harm."""
        if self._has_ended:
            return
        self._has_ended = True
        try:
            with self._driver.entered(self._handle):
                # What a tensor was last used for may still run on the device.
                self._driver.checked(self._driver.api.cuCtxSynchronize())
                self._driver.unmap(self._address, self._nbytes)
        except (CudaFailed, NoDeviceMemory):
            pass  # the context is lost: the map goes with the process
        finally:
            self._lease.close()


class _Span:
    """Part of a map, as torch takes memory of others; the storage that torch makes keeps it."""

    __slots__ = ("__cuda_array_interface__", "_mapping")

    def __init__(self, mapping: SharedMapping, address: int, nbytes: int) -> None:
        self._mapping = mapping
        # Not as read-only, which torch refuses to take.
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }
