"""What the service asks of a GPU: blocks of memory that other processes can map."""

from __future__ import annotations

from typing import Protocol

__all__ = ["GpuBlock", "GpuMemory"]


class GpuBlock(Protocol):
    """A block of memory, which is there until it is closed here and nobody else has it."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        ...

    def fill(self, descriptor: int, size: int) -> None:
        """Copy the first ``size`` bytes of a file to its beginning.

        Raises:
            EOFError, OSError: The file is shorter, or cannot be read.
            ResourceLimit: The system gives no page-locked memory.
            CudaFailed: The device failed.
        """
        ...

    def sha256(self, size: int) -> str:
        """Digest of its first ``size`` bytes as they are now, in hex, read back from the device.

        Raises:
            CudaFailed: The device failed.
        """
        ...

    def export(self) -> int:
        """A new descriptor of it, which is the caller's and close-on-exec."""
        ...

    def close(self) -> None:
        """Give it up here."""
        ...


class GpuMemory(Protocol):
    """The memory of one GPU; blocking, one call at a time but for ``free_bytes``."""

    @property
    def uuid(self) -> str:
        """The GPU, as NVIDIA's tools name it."""
        ...

    @property
    def name(self) -> str:
        """Name of the card."""
        ...

    @property
    def total_bytes(self) -> int:
        """All of its memory."""
        ...

    def free_bytes(self) -> int | None:
        """Memory that nobody has; None where it cannot be told."""
        ...

    def create(self, size: int) -> GpuBlock:
        """A block of at least so many bytes, more than none.

        Raises:
            NoDeviceMemory: There is not enough.
            CudaFailed: The device failed.
        """
        ...

    def block_bytes(self, size: int) -> int:
        """Bytes that a block for ``size`` bytes takes."""
        ...
