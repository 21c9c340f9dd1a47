"""The way to one device: what copies there, through which buffers, and what may end it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from craftcache.amounts import exact_size_text
from craftcache.errors import DeviceMemoryFull

from .accelerator import NoDeviceMemory
from .pipeline import Pipeline
from .staging import StagingRing, process_ring

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from .accelerator import Accelerator

__all__ = ["DeviceLink", "find_link"]

T = TypeVar("T")


def _go_on() -> None:
    """A check that ends nothing."""


@dataclass(frozen=True, slots=True)
class DeviceLink:
    """The way to one device.

    Attributes:
        accelerator: The device.
        ring: Page-locked buffers.
        check: Raises what is to end a load, such as a cancellation; called in several threads.
        readers: Threads of a load at most; None for as many as this machine is good for.
    """

    accelerator: Accelerator
    ring: StagingRing = field(default=process_ring)
    check: Callable[[], None] = _go_on
    readers: int | None = None

    def open(self) -> Pipeline:
        """A pipeline for one load."""
        return Pipeline(self.accelerator, self.ring, check=self.check, readers=self.readers)

    def placing(self, nbytes: int, source: str | None, place: Callable[[], T]) -> T:
        """What ``place`` returns, which takes memory of the device.

        Args:
            nbytes: How much, in bytes.
            source: Named in errors.
            place: Raises NoDeviceMemory where there is too little.

        Raises:
            DeviceMemoryFull: There is too little; what ``place`` had taken was given back.
        """
        try:
            return place()
        except NoDeviceMemory:
            pass  # its frames keep the memory that was taken, and are gone after this
        self.accelerator.give_back()
        free = self.accelerator.free_bytes()
        raise DeviceMemoryFull(
            f"it needs {exact_size_text(nbytes)} on {self.accelerator.device}, which has "
            f"{'too little' if free is None else exact_size_text(free)} free",
            needed_bytes=nbytes,
            free_bytes=free,
            source=source,
            hint="Free some there, or load fewer models",
        )


def find_link(device: torch.device, check: Callable[[], None] = _go_on) -> DeviceLink | None:
    """The way to ``device``; None where plain copies have to do."""
    from .torch_accelerator import find_accelerator

    accelerator = find_accelerator(device)
    return None if accelerator is None else DeviceLink(accelerator, check=check)
