"""What the client's tests share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemons import DaemonProcess
    from hub import TestHub

__all__ = ["Node"]


@dataclass(frozen=True, slots=True)
class Node:
    """A daemon and the hub that it fetches from."""

    hub: TestHub
    daemon: DaemonProcess
