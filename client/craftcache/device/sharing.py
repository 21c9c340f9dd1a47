"""One copy of a model in a GPU's memory for all workers of that GPU, as a worker sees it.

A worker gets a descriptor of a block of the GPU's memory and a lease of it, maps the block and
makes tensors in the map. While the lease is open in any process, the GPU's service keeps the block
for the next worker. The memory itself stays as long as any process has it mapped or a descriptor of
it open, so that neither the end of the service nor that of another worker takes it away.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import torch

__all__ = [
    "Lease",
    "NotShared",
    "SharedDevice",
    "SharedMapper",
    "SharedSpans",
    "find_shared_device",
]


class NotShared(Exception):  # internal: a private copy is made, or Unavailable raised
    """This process cannot share memory of a device.

    Args:
        reason: Why, for people.
        hint: See below.

    Attributes:
        hint: What to do about it.
    """

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


class Lease:
    """Keeps a block of memory at its service until it is closed; closes itself when dropped.

    A forked child closes its copy: it must not use the device, and would keep the block.

    Args:
        descriptor: Descriptor of the lease, which is this object's from now on.
    """

    __slots__ = ("__weakref__", "_descriptor")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        _leases.add(self)

    def close(self) -> None:
        """Give the block back; more than once does no harm."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __del__(self) -> None:
        self.close()


class SharedSpans(Protocol):
    """A block of a device's memory that is mapped into this process.

    It and every tensor in it keep the map and its lease. When the last of them is gone, the device
    is waited for, the map removed and then the lease closed.
    """

    def span(self, offset: int, nbytes: int) -> torch.Tensor:
        """Bytes of it, at least one, as a tensor with a storage of exactly that size.

        Raises:
            NotShared: torch does not take such memory.
        """


class SharedMapper(Protocol):
    """Maps blocks of one device's memory into this process."""

    def map(self, descriptor: int, nbytes: int, lease: Lease) -> SharedSpans:
        """The block that ``descriptor`` stands for; the descriptor stays the caller's to close.

        Raises:
            NotShared: It cannot be mapped; the lease is still the caller's.
        """


@dataclass(frozen=True, slots=True)
class SharedDevice:
    """A device whose memory this process can share.

    Attributes:
        uuid: Name of the device that is the same in all processes, as in ``GPU-…``.
        mapper: Maps blocks of its memory.
    """

    uuid: str
    mapper: SharedMapper


def find_shared_device(device: torch.device) -> SharedDevice | None:
    """The shared memory of ``device``; None on the CPU, where files are shared in any case.

    Raises:
        NotShared: The device, or this process, has no such memory.
    """
    if device.type in ("cpu", "meta"):
        return None
    if device.type != "cuda":
        raise NotShared(
            f"memory of {device} cannot be shared", "Load without share, or onto a CUDA device"
        )
    from .cuda_sharing import cuda_device

    return cuda_device(device)


_leases: Final[weakref.WeakSet[Lease]] = weakref.WeakSet()


def _close_all() -> None:
    for lease in list(_leases):
        lease.close()


os.register_at_fork(after_in_child=_close_all)
