"""Memory files in the place of a GPU's memory: blocks that other processes map by a descriptor."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import threading
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from craftcache.device.accelerator import NoDeviceMemory
from craftcache.device.cuda_driver import CudaFailed
from craftcache.device.sharing import NotShared, SharedDevice

if TYPE_CHECKING:
    import torch

    from craftcache import AsyncClient, Client
    from craftcache.device.sharing import Lease

UUID = "GPU-00000000-0000-0000-0000-00000000000e"

PAGE = mmap.PAGESIZE
NAME = "gpu-block"


@dataclass(eq=False)
class MemfdMemory:
    """See GpuMemory.

    Attributes:
        total_bytes: Memory that there is.
        blocks: Those that are not given up.
        fills: How many copies were made.
        may_fill: Copies wait for it.
        may_create: So do new blocks.
        is_creating: Set when one has begun.
        is_filling: Set when a copy has begun.
        is_lost: Whether the device fails.
        has_closed: Set when a block was given up.
    """

    total_bytes: int = 1 << 40
    uuid: str = UUID
    name: str = "emulated"
    blocks: list[MemfdBlock] = field(default_factory=list)
    fills: int = 0
    may_fill: threading.Event = field(default_factory=threading.Event)
    may_create: threading.Event = field(default_factory=threading.Event)
    is_creating: threading.Event = field(default_factory=threading.Event)
    is_filling: threading.Event = field(default_factory=threading.Event)
    has_closed: threading.Event = field(default_factory=threading.Event)
    is_lost: bool = False

    def __post_init__(self) -> None:
        self.may_fill.set()
        self.may_create.set()

    def free_bytes(self) -> int | None:
        return self.total_bytes - sum(block.nbytes for block in self.blocks)

    def block_bytes(self, size: int) -> int:
        return -(-size // PAGE) * PAGE

    def create(self, size: int) -> MemfdBlock:
        self.is_creating.set()
        self.may_create.wait()
        nbytes = self.block_bytes(size)
        if nbytes > (self.free_bytes() or 0):
            raise NoDeviceMemory("no room")
        block = MemfdBlock(self, nbytes)
        self.blocks.append(block)
        return block


class MemfdBlock:
    """See GpuBlock."""

    def __init__(self, memory: MemfdMemory, nbytes: int) -> None:
        self._memory = memory
        self.nbytes = nbytes
        self.descriptor = os.memfd_create(NAME)
        os.ftruncate(self.descriptor, nbytes)

    def fill(self, descriptor: int, size: int) -> None:
        self._memory.is_filling.set()
        self._memory.may_fill.wait()
        if self._memory.is_lost:
            raise CudaFailed("CUDA_ERROR_ILLEGAL_ADDRESS")
        self._memory.fills += 1
        content = os.pread(descriptor, size, 0)
        if len(content) != size:
            raise EOFError("the file ends")
        os.pwrite(self.descriptor, content, 0)

    def sha256(self, size: int) -> str:
        if self._memory.is_lost:
            raise CudaFailed("CUDA_ERROR_ILLEGAL_ADDRESS")
        return hashlib.sha256(os.pread(self.descriptor, size, 0)).hexdigest()

    def export(self) -> int:
        return fcntl.fcntl(self.descriptor, fcntl.F_DUPFD_CLOEXEC, 3)

    def close(self) -> None:
        if self in self._memory.blocks:
            self._memory.blocks.remove(self)
            os.close(self.descriptor)
            self._memory.has_closed.set()


class MemfdMapper:
    """See SharedMapper.

    Args:
        obstacle: Why nothing can be mapped; None where it can.
    """

    def __init__(self, obstacle: str | None = None) -> None:
        self._obstacle = obstacle

    def map(self, descriptor: int, nbytes: int, lease: Lease) -> MemfdSpans:
        if self._obstacle is not None:
            raise NotShared(self._obstacle, "Do something about it")
        return MemfdSpans(_Map.of(descriptor, nbytes, lease))


class _Map(mmap.mmap):
    """A map for reading that keeps its lease, and is kept by the tensors in it."""

    lease: Lease

    @classmethod
    def of(cls, descriptor: int, nbytes: int, lease: Lease) -> _Map:
        mapped = cls(descriptor, nbytes, prot=mmap.PROT_READ)
        mapped.lease = lease
        return mapped


class MemfdSpans:
    """See SharedSpans."""

    def __init__(self, mapped: _Map) -> None:
        self._map = mapped

    def span(self, offset: int, nbytes: int) -> torch.Tensor:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a map for reading is what it is meant to be
            return torch.frombuffer(self._map, dtype=torch.uint8, count=nbytes, offset=offset)


def share_by_memfd(client: Client | AsyncClient, obstacle: str | None = None) -> None:
    """Have a client's ``share=True`` go to the service with memory files, whatever the device."""
    shared = SharedDevice(UUID, MemfdMapper(obstacle))
    client._do.find_shared_device = lambda _device: shared
