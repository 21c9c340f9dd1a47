"""The device that tests and benchmark run on: the first CUDA device, or one that is emulated."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from craftcache.device.link import DeviceLink, find_link
from tests.support.emulated_accelerator import emulated

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Target", "open_target"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where to load.

    Attributes:
        device: The device of all tensors.
        link: The way to it.
        name: Name of the card, or that it is emulated.
    """

    device: torch.device
    link: DeviceLink
    name: str

    @property
    def is_real(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type != "cpu"

    def synchronize(self) -> None:
        """Wait until the device has nothing more to do."""
        if self.is_real:
            torch.cuda.synchronize(self.device)
        else:
            self.link.accelerator.mark().wait()

    def used_bytes(self) -> int:
        """Memory that tensors of this process have there."""
        if self.is_real:
            return torch.cuda.memory_allocated(self.device)
        used: int = self.link.accelerator.used_bytes  # type: ignore[attr-defined]
        return used


@contextlib.contextmanager
def open_target() -> Iterator[Target]:
    """The device; CRAFTCACHE_TEST_DRY_RUN in the environment asks for the emulated one."""
    if torch.cuda.is_available() and not os.environ.get("CRAFTCACHE_TEST_DRY_RUN"):
        device = torch.device("cuda", 0)
        link = find_link(device)
        assert link is not None
        yield Target(device, link, torch.cuda.get_device_name(device))
        return
    with emulated(lazy=False) as accelerator:
        yield Target(accelerator.device, DeviceLink(accelerator), "emulated on the CPU")
