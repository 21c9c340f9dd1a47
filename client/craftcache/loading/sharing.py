"""Loads whose tensors are to lie in memory that all workers of a GPU share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.device.sharing import Lease, NotShared

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from craftcache.cache.opened import OpenFile
    from craftcache.checkpoint.index import Index
    from craftcache.device.sharing import SharedDevice

__all__ = ["Sharing"]


@dataclass(frozen=True, slots=True)
class Sharing:
    """The sharing of one load.

    Attributes:
        device: The device whose memory is shared.
        refuse: Called with the reason where a file of the load is copied after all; may raise.
    """

    device: SharedDevice
    refuse: Callable[[NotShared], None]

    def to_object(self, file: OpenFile, index: Index | None, device: torch.device) -> object:
        """The object that ``torch.load`` would return for a file in the device's memory.

        Raises:
            NotShared: It has no index that this release can read, or cannot be mapped.
        """
        from craftcache.checkpoint.in_shared_memory import build_shared
        from craftcache.checkpoint.shareable import why_not_shareable

        why = why_not_shareable(index)
        if index is None or why is not None:
            raise _of_file(file, why or "it has no index")
        if file.lease is None or file.memory_bytes is None:
            raise _of_file(file, "it came without a lease")
        lease, file.lease = Lease(file.lease), None
        spans = self.device.mapper.map(file.descriptor, file.memory_bytes, lease)
        return build_shared(index, spans, device)

    def note_copied(self, file: OpenFile, index: Index | None) -> None:
        """Say why a file is copied, unless it holds no tensors."""
        if index is None or index.storages or index.reason is not None:
            from craftcache.checkpoint.shareable import why_not_shareable

            why = why_not_shareable(index) or "the service of the GPU has sent it as a file"
            self.refuse(_of_file(file, why))


def _of_file(file: OpenFile, why: str) -> NotShared:
    return NotShared(f"{file.info.filename}: {why}", "Save it anew, by torch.save of torch 1.6 on")
