"""What the pipeline asks of a device: memory of its own, page-locked memory, and streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    import torch

__all__ = [
    "Accelerator",
    "CopyStream",
    "DeviceWork",
    "Mark",
    "NoDeviceMemory",
    "PinnedBuffer",
    "Upload",
]


class NoDeviceMemory(Exception):
    """The device has no room for what was asked of it; whoever asked knows what it was for."""


class Mark(Protocol):
    """A point in the work of a stream."""

    def is_reached(self) -> bool:
        """Whether the device is there, or has failed, as far as can be told at once."""

    def wait(self) -> None:
        """Block the calling thread until the device is there.

        Raises:
            DeviceLost: The device failed.
        """


class Upload(NamedTuple):
    """Bytes of a page-locked buffer that go to the device as they are.

    Attributes:
        target: Where to: memory of the device, in one piece and of that size.
        position: Place in the buffer, in bytes.
        nbytes: Size in bytes.
    """

    target: torch.Tensor
    position: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class DeviceWork:
    """Copies that a stream makes in this order.

    Attributes:
        after: Nothing begins before the device has reached this point of another stream.
        buffer: What uploads are from; it must not be written to before all of this is done.
        uploads: What is copied from there.
        spreads: Target and source that both are on the device; they are cast to the target's
            dtype.
    """

    after: Mark | None
    buffer: PinnedBuffer
    uploads: Sequence[Upload]
    spreads: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()


class CopyStream(Protocol):
    """A queue of work on the device, done in order; two of them know nothing of each other."""

    def enqueue(self, work: DeviceWork) -> Mark:
        """Have it done, without waiting for it; returns the point at which all of it is.

        Raises:
            NoDeviceMemory: The device needs memory for it, and has none.
            DeviceLost: The device failed. In either case nothing of it goes on.
        """


@dataclass(frozen=True, slots=True, eq=False)
class PinnedBuffer:
    """Page-locked memory, from which a device copies while nobody waits.

    Attributes:
        tensor: All of it as bytes, on the CPU.
        view: The same memory, for reads to go to; it begins at a page.
        return_memory: Called when the last use of this buffer is over: gives memory that nobody
            has any more back to the system.
    """

    tensor: torch.Tensor
    view: memoryview
    return_memory: Callable[[], object]


class Accelerator(Protocol):
    """A device with memory of its own, and streams that copy into it."""

    @property
    def device(self) -> torch.device:
        """The device, by its number."""

    @property
    def kind(self) -> str:
        """Kind of device; page-locked memory serves all devices of one kind."""

    def entered(self) -> AbstractContextManager[object]:
        """A context in which the calling thread's calls go to this device."""

    def new_stream(self) -> CopyStream:
        """A stream; call it inside ``entered``."""

    def mark(self) -> Mark:
        """The point that the calling thread's current stream has reached with what is enqueued."""

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Memory of the device as bytes, a storage of its own of exactly that size.

        It may be used from the current stream's next ``mark`` on.

        Raises:
            NoDeviceMemory: There is not enough.
            DeviceLost: The device failed.
        """

    def pin(self, nbytes: int) -> PinnedBuffer:
        """Page-locked memory of about that size.

        Raises:
            ResourceLimit: The system gives none.
        """

    def free_bytes(self) -> int | None:
        """Free memory of the device in bytes; None where it cannot be told."""

    def give_back(self) -> None:
        """Give memory that no tensor of this process has any more back to the device."""
