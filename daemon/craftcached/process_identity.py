"""Which process wrote something down, on which node, and whether that process has ended."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from craftcache.wire.record import JsonRecord, text

__all__ = ["ProcessIdentity", "current_boot_id"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

MAX_HOST = 255
"""Characters of a node's name."""

MAX_BOOT = 64

_START_TIME_FIELD = 19
"""Of /proc/PID/stat, counted from the one after the command's name: when the process started."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity(JsonRecord):
    """One process on one node.

    Attributes:
        host: The node's name, for people.
        boot: Id of the node's boot; empty where the kernel does not give it.
        namespace: Inode of the pid namespace that ``pid`` is of.
        pid: Process id.
        started: Start of the process, in clock ticks since the boot.
    """

    host: Annotated[str, text(MAX_HOST)]
    boot: Annotated[str, text(MAX_BOOT, empty=True)]
    namespace: int
    pid: int
    started: int

    @classmethod
    def mine(cls) -> Self:
        """That of this process."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            boot=current_boot_id(),
            namespace=Path("/proc/self/ns/pid").stat().st_ino,
            pid=pid,
            started=_start_of(pid) or 0,
        )

    def has_ended(self, *, seen_from: ProcessIdentity) -> bool:
        """Whether the process surely ended; False where ``seen_from`` could not see it."""
        is_in_sight = (self.boot, self.namespace) == (seen_from.boot, seen_from.namespace)
        return bool(self.boot) and is_in_sight and _start_of(self.pid) != self.started

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


def current_boot_id() -> str:
    """Id of this boot of the machine; empty where the kernel does not give it."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None where there is none."""
    try:
        _, _, rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(rest.split()[_START_TIME_FIELD])
