"""What goes through one buffer on its way to a device: what is read, and what is copied of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from .accelerator import Mark, PinnedBuffer

__all__ = ["CopyJob", "Part", "Reading"]


class Reading(Protocol):
    """Something that is read into a buffer."""

    def fill(self, buffer: PinnedBuffer) -> None:
        """Read it, to its place in the buffer."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is copied out of a buffer.

    Attributes:
        target: Where to, on the device.
        dtype: Dtype of the elements in the buffer; another than the target's is cast there.
        position: Place in the buffer, in bytes; aligned for the dtype.
        nbytes: Size in the buffer.
    """

    target: torch.Tensor
    dtype: torch.dtype
    position: int
    nbytes: int

    def of(self, memory: torch.Tensor) -> torch.Tensor:
        """The elements, in a buffer or what was copied of one."""
        return memory[self.position : self.position + self.nbytes].view(self.dtype)


@dataclass(frozen=True, slots=True)
class CopyJob:
    """What goes through one buffer.

    Attributes:
        readings: What is read.
        parts: What is copied.
        after: The point of the caller's stream from which the targets may be written to.
        used: Bytes of the buffer up to the end of the last part.
        staging: Memory on the device of that size at least: the buffer is copied to it at once,
            and its parts from there. None to copy each part by itself, which casts nothing.
            Jobs may share it: the copies of one are done before those of another.
    """

    readings: Sequence[Reading]
    parts: Sequence[Part]
    after: Mark
    used: int
    staging: torch.Tensor | None = None
