"""What every download works with, and what makes each of them its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from craftcached.threads import Threads

    from .disk_space import DiskSpace
    from .limits import Bandwidth, Claimant, Connections, MemoryBudget
    from .retry import RetryPolicy
    from .settings import EngineSettings
    from .transfer import Transfer
    from .types import RemoteFile
    from .xet import Xet

__all__ = ["FetchContext", "FetchRequest"]


@dataclass(frozen=True, slots=True)
class FetchContext:
    """What all downloads share.

    Attributes:
        staging: Where partial files are.
        boot_id: Of the running system, for journals.
        settings: Limits and patience.
        policy: When to try again.
        transfer: Makes requests.
        threads: Where everything that blocks is done,
        syncing: but for fsync, which is done here.
        connections: The limit on requests in flight.
        bandwidth: The cap on bytes a second.
        memory: The budget for bytes that wait for their turn to be hashed.
        space: The ledger of the disk's room.
        xet: Another way to fetch files from Xet storage, or None.
    """

    staging: Path
    boot_id: str
    settings: EngineSettings
    policy: RetryPolicy
    transfer: Transfer
    threads: Threads
    syncing: Threads
    connections: Connections
    bandwidth: Bandwidth
    memory: MemoryBudget
    space: DiskSpace
    xet: Xet | None


@dataclass(frozen=True, slots=True, eq=False)
class FetchRequest:
    """One file that somebody asked for.

    Attributes:
        file: What.
        claimant: Who it is to the limits.
        report: Told the bytes present and the total, where known.
    """

    file: RemoteFile
    claimant: Claimant
    report: Callable[[int, int | None], None]
