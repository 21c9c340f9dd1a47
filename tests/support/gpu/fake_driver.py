"""cuda-bindings' driver API, on memory files: of ``cuda.bindings.driver`` what we use.

Calls return as those do: a result, then values. Handles are numbers, maps are real, and what is
leaked or used after its end is an error. ``failing`` names a call that fails.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
import os
from types import SimpleNamespace
from typing import Any

UUID = bytes(range(16))

GRANULARITY = 2 << 20


class Result(enum.Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


MAP_FIXED = 0x10
"""From Linux's mman.h."""

LIBC = ctypes.CDLL(None)
LIBC.mmap.restype = ctypes.c_size_t
LIBC.mmap.argtypes = (ctypes.c_size_t, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)

OK = Result.CUDA_SUCCESS


class FakeDriver:
    """The API; its attributes are what the module's are.

    Attributes:
        failing: Name of the call that fails, and how.
        handles: Memory that has a handle.
        maps: Maps, by address.
        reserved: Addresses that are taken, mapped or not.
        contexts: How often the primary context is retained.
        current: How many contexts are pushed.
        pinned: Page-locked memory, by address.
        streams: Streams that were not destroyed.
        total: Memory in bytes.
    """

    CUresult = Result
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED="vmm",
        CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED="fd",
    )
    CUmemAllocationHandleType = SimpleNamespace(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR="posix")
    CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED="pinned")
    CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE="device")
    CUmemAllocationGranularity_flags = SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_RECOMMENDED="r")
    CUmemAccess_flags = SimpleNamespace(
        CU_MEM_ACCESS_FLAGS_PROT_READWRITE="rw", CU_MEM_ACCESS_FLAGS_PROT_READ="r"
    )

    def __init__(self, total: int = 1 << 34) -> None:
        self.failing: dict[str, Result] = {}
        self.attributes = {"vmm": 1, "fd": 1}
        self.handles: dict[int, int] = {}
        self.maps: dict[int, mmap.mmap] = {}
        self.access: dict[int, str] = {}
        self.reserved: dict[int, mmap.mmap] = {}
        self.contexts = 0
        self.current = 0
        self.pinned: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.total = total
        self._next = 1 << 40

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("cu") and (failure := self.failing.get(name)) is not None:
            return lambda *_: (failure,)
        return value

    def _new(self) -> int:
        self._next += 1
        return self._next

    def _needs_context(self) -> None:
        assert self.current, "no context is current in this thread"

    @staticmethod
    def CUmemAllocationProp() -> SimpleNamespace:
        return SimpleNamespace(location=SimpleNamespace())

    @staticmethod
    def CUmemAccessDesc() -> SimpleNamespace:
        return SimpleNamespace(location=SimpleNamespace())

    def cuDeviceGet(self, ordinal: int) -> Any:
        return (OK, ordinal) if ordinal == 0 else (Result.CUDA_ERROR_INVALID_VALUE, None)

    def cuDeviceGetAttribute(self, attribute: str, device: int) -> Any:
        return OK, self.attributes[attribute]

    def cuDeviceGetUuid(self, device: int) -> Any:
        return OK, SimpleNamespace(bytes=UUID)

    def cuDeviceGetName(self, length: int, device: int) -> Any:
        return OK, b"Fake GPU".ljust(length, b"\0")

    def cuDeviceTotalMem(self, device: int) -> Any:
        return OK, self.total

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        self.contexts += 1
        return OK, "context"

    def cuDevicePrimaryCtxRelease(self, device: int) -> Any:
        self.contexts -= 1
        return (OK,)

    def cuCtxPushCurrent(self, context: str) -> Any:
        self.current += 1
        return (OK,)

    def cuCtxPopCurrent(self) -> Any:
        self.current -= 1
        return OK, "context"

    def cuCtxSynchronize(self) -> Any:
        self._needs_context()
        return (OK,)

    def cuMemGetInfo(self) -> Any:
        self._needs_context()
        return OK, self.total // 2, self.total

    def cuMemGetAllocationGranularity(self, properties: Any, which: str) -> Any:
        return OK, GRANULARITY

    def cuMemCreate(self, size: int, properties: Any, flags: int) -> Any:
        assert size % GRANULARITY == 0
        assert (properties.type, properties.requestedHandleTypes) == ("pinned", "posix")
        assert (properties.location.type, properties.location.id) == ("device", 0)
        if size > self.total:
            return Result.CUDA_ERROR_OUT_OF_MEMORY, None
        descriptor = os.memfd_create("fake-gpu")
        os.ftruncate(descriptor, size)
        self.handles[handle := self._new()] = descriptor
        return OK, handle

    def cuMemExportToShareableHandle(self, handle: int, kind: str, flags: int) -> Any:
        return OK, os.dup(self.handles[handle])

    def cuMemImportFromShareableHandle(self, descriptor: int, kind: str) -> Any:
        self.handles[handle := self._new()] = os.dup(descriptor)
        return OK, handle

    def cuMemRelease(self, handle: int) -> Any:
        os.close(self.handles.pop(handle))
        return (OK,)

    def cuMemAddressReserve(self, size: int, alignment: int, address: int, flags: int) -> Any:
        place = mmap.mmap(-1, size)
        reserved = ctypes.addressof(ctypes.c_char.from_buffer(place))
        self.reserved[reserved] = place
        return OK, reserved

    def cuMemAddressFree(self, address: int, size: int) -> Any:
        place = self.reserved.pop(address)
        assert len(place) == size
        place.close()
        return (OK,)

    def cuMemMap(self, address: int, size: int, offset: int, handle: int, flags: int) -> Any:
        self._needs_context()
        place = self.reserved[address]
        assert len(place) == size
        self._put(address, size, mmap.MAP_SHARED, self.handles[handle])
        self.maps[address] = place
        return (OK,)

    def cuMemSetAccess(self, address: int, size: int, descriptions: list[Any], count: int) -> Any:
        [description] = descriptions
        assert (description.location.type, description.location.id) == ("device", 0)
        self.access[address] = description.flags
        return (OK,)

    def cuMemUnmap(self, address: int, size: int) -> Any:
        mapped = self.maps.pop(address)
        assert len(mapped) == size
        self.access.pop(address, None)
        self._put(address, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        return (OK,)

    @staticmethod
    def _put(address: int, size: int, flags: int, descriptor: int) -> None:
        """Map a file, or nothing, in the place of what is at an address."""
        prot = mmap.PROT_READ | mmap.PROT_WRITE
        assert LIBC.mmap(address, size, prot, flags | MAP_FIXED, descriptor, 0) == address

    def cuStreamCreate(self, flags: int) -> Any:
        self._needs_context()
        self.streams.add(stream := self._new())
        return OK, stream

    def cuStreamSynchronize(self, stream: int) -> Any:
        assert stream in self.streams
        return (OK,)

    def cuStreamDestroy(self, stream: int) -> Any:
        self.streams.remove(stream)
        return (OK,)

    def cuMemHostAlloc(self, size: int, flags: int) -> Any:
        memory = ctypes.create_string_buffer(size)
        self.pinned[address := ctypes.addressof(memory)] = memory
        return OK, address

    def cuMemFreeHost(self, address: int) -> Any:
        del self.pinned[address]
        return (OK,)

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> Any:
        mapped, offset, access = self._place(target, size)
        if access != "rw":
            return (Result.CUDA_ERROR_ILLEGAL_ADDRESS,)
        mapped[offset : offset + size] = ctypes.string_at(source, size)
        return (OK,)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> Any:
        mapped, offset, _ = self._place(source, size)
        ctypes.memmove(target, mapped[offset : offset + size], size)
        return (OK,)

    def _place(self, address: int, size: int) -> tuple[mmap.mmap, int, str]:
        for start, mapped in self.maps.items():
            if start <= address and address + size <= start + len(mapped):
                return mapped, address - start, self.access[start]
        raise AssertionError("an address outside all maps")
