"""CUDA's driver, as far as shared memory takes it: devices, contexts, and virtual memory.

By cuda-bindings alone, so that the service of a GPU needs no torch. Both sides of a shared block
use this: the service makes and exports it, workers import and map it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .accelerator import NoDeviceMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CudaDriver", "CudaFailed", "NoCudaDriver"]

UUID_NAME: Final = "GPU-{}-{}-{}-{}-{}"
"""How NVIDIA's tools write a UUID: groups of 8, 4, 4, 4 and 12 digits."""

NAME_BYTES: Final = 256


class NoCudaDriver(Exception):
    """This process cannot use the driver: cuda-bindings, the driver or a device is missing."""


class CudaFailed(Exception):
    """The driver refused something; the text has its own name for the reason."""


@dataclass(frozen=True, slots=True)
class CudaDriver:
    """The driver.

    Attributes:
        api: The module ``cuda.bindings.driver``.
    """

    api: Any

    @classmethod
    def load(cls) -> CudaDriver:
        """The driver of this machine.

        Raises:
            NoCudaDriver: There is none, or cuda-bindings is not installed.
        """
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise NoCudaDriver(
                "cuda-bindings is not installed: pip install cuda-bindings"
            ) from error
        loaded = cls(driver)
        try:
            loaded.checked(driver.cuInit(0))
        except (RuntimeError, CudaFailed) as error:
            raise NoCudaDriver(f"the CUDA driver cannot be used ({error})") from error
        return loaded

    def checked(self, returned: tuple[Any, ...]) -> Any:  # noqa: ANN401  # whatever the call has
        """What a call of the driver returns beside its result.

        Raises:
            NoDeviceMemory: There is too little memory.
            CudaFailed: Any other failure.
        """
        result, *values = returned
        if result == self.api.CUresult.CUDA_SUCCESS:
            return values[0] if len(values) == 1 else tuple(values)
        if result == self.api.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise NoDeviceMemory("the driver gives no more memory")
        raise CudaFailed(getattr(result, "name", str(result)))

    def device(self, ordinal: int) -> Any:  # noqa: ANN401  # a handle of the driver's
        """The device of that number in this process.

        Raises:
            NoCudaDriver: There is none, or it has no memory that can be shared.
        """
        attributes = self.api.CUdevice_attribute
        try:
            device = self.checked(self.api.cuDeviceGet(ordinal))
            can_share = [
                self.checked(self.api.cuDeviceGetAttribute(attribute, device))
                for attribute in (
                    attributes.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
                    attributes.CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
                )
            ]
        except CudaFailed as error:
            raise NoCudaDriver(f"there is no CUDA device {ordinal} ({error})") from error
        if not all(can_share):
            raise NoCudaDriver(f"memory of CUDA device {ordinal} has no file descriptors")
        return device

    def uuid(self, device: Any) -> str:  # noqa: ANN401  # see device
        """Name of a device that is the same in all processes, as NVIDIA's tools write it."""
        ask = getattr(self.api, "cuDeviceGetUuid_v2", self.api.cuDeviceGetUuid)
        digits = bytes(self.checked(ask(device)).bytes).hex()
        parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        return UUID_NAME.format(*parts)

    def name(self, device: Any) -> str:  # noqa: ANN401  # see device
        """Name of the card."""
        name = self.checked(self.api.cuDeviceGetName(NAME_BYTES, device))
        return bytes(name).split(b"\0")[0].decode("ascii", "replace")

    @contextlib.contextmanager
    def entered(self, device: Any) -> Iterator[None]:  # noqa: ANN401  # see device
        """A context in which the calling thread's calls go to a device, in torch's own context."""
        self.checked(
            self.api.cuCtxPushCurrent(self.checked(self.api.cuDevicePrimaryCtxRetain(device)))
        )
        try:
            yield
        finally:
            self.api.cuCtxPopCurrent()
            self.api.cuDevicePrimaryCtxRelease(device)

    def create(self, nbytes: int, ordinal: int) -> Any:  # noqa: ANN401  # a handle
        """Memory that can be exported; ``nbytes`` is a multiple of the granularity.

        Raises:
            NoDeviceMemory: There is not enough.
        """
        return self.checked(self.api.cuMemCreate(nbytes, self._properties(ordinal), 0))

    def granularity(self, ordinal: int) -> int:
        """Bytes of which each block's size is a multiple."""
        which = self.api.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
        properties = self._properties(ordinal)
        return int(self.checked(self.api.cuMemGetAllocationGranularity(properties, which)))

    def exported(self, handle: Any) -> int:  # noqa: ANN401  # see create
        """A new descriptor of memory."""
        return int(
            self.checked(self.api.cuMemExportToShareableHandle(handle, self._descriptors, 0))
        )

    def imported(self, descriptor: int) -> Any:  # noqa: ANN401  # a handle
        """The memory that a descriptor stands for."""
        return self.checked(self.api.cuMemImportFromShareableHandle(descriptor, self._descriptors))

    def release(self, handle: Any) -> None:  # noqa: ANN401  # see create
        """Give up a handle; maps and descriptors of the memory stay."""
        self.checked(self.api.cuMemRelease(handle))

    def map(self, handle: Any, nbytes: int, ordinal: int, *, writable: bool) -> int:  # noqa: ANN401
        """Map memory; returns its address. A write to what is not writable costs the context.

        Raises:
            CudaFailed: It cannot be mapped; nothing of it stays.
        """
        api, flags = self.api, self.api.CUmemAccess_flags
        access = api.CUmemAccessDesc()
        access.location.type = api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = ordinal
        access.flags = (
            flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
            if writable
            else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
        )
        with contextlib.ExitStack() as undo:
            address = self.checked(api.cuMemAddressReserve(nbytes, 0, 0, 0))
            undo.callback(api.cuMemAddressFree, address, nbytes)
            self.checked(api.cuMemMap(address, nbytes, 0, handle, 0))
            undo.callback(api.cuMemUnmap, address, nbytes)
            self.checked(api.cuMemSetAccess(address, nbytes, [access], 1))
            undo.pop_all()
        return int(address)

    def unmap(self, address: int, nbytes: int) -> None:
        """Remove a map that nothing on the device uses any more."""
        self.checked(self.api.cuMemUnmap(address, nbytes))
        self.checked(self.api.cuMemAddressFree(address, nbytes))

    @property
    def _descriptors(self) -> Any:  # noqa: ANN401  # a constant of the driver's
        return self.api.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

    def _properties(self, ordinal: int) -> Any:  # noqa: ANN401  # a struct of the driver's
        api = self.api
        properties = api.CUmemAllocationProp()
        properties.type = api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = ordinal
        properties.requestedHandleTypes = self._descriptors
        return properties
