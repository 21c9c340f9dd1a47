"""The context that all downloads share, and the request that is each one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from craftcached.threads import Threads

    from .disk_space import DiskSpace
    from .limits import Bandwidth, Claimant, Connections, MemoryBudget
    from .mirrors import Mirrors, Route
    from .repairs import Repairs
    from .retry import RetryPolicy
    from .settings import EngineSettings
    from .transfer import Transfer
    from .types import RemoteFile
    from .xet import Xet

__all__ = ["FetchContext", "FetchRequest"]


@dataclass(frozen=True, slots=True)
class FetchContext:
    """The settings, limits, threads and connections that all downloads share.

    Attributes:
        staging: Directory of partial files.
        boot_id: Id of the running boot of the machine, for journals.
        settings: Limits and timeouts.
        policy: Decides whether and when to try again.
        transfer: Makes requests.
        threads: Threads for all blocking calls but fsync.
        syncing: Threads for fsync, which may take seconds and must not hold up writes.
        connections: The limit on requests in flight.
        bandwidth: The limit on bytes a second.
        mirrors: Who is asked before origins are.
        repairs: Has mirrors replace what was wrong.
        memory: The budget, in bytes, for data that waits to be hashed.
        space: The ledger of the disk space that downloads have reserved.
        xet: The client for files in Xet storage; None fetches all by HTTP.
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
    mirrors: Mirrors
    repairs: Repairs
    memory: MemoryBudget
    space: DiskSpace
    xet: Xet | None


@dataclass(frozen=True, slots=True, eq=False)
class FetchRequest:
    """One file to be fetched.

    Attributes:
        file: The file at its origin.
        route: Which mirrors are asked for it first.
        claimant: The download as the limits know it: its priority and its bytes received.
        report: Called with the bytes present and the total in bytes, None where unknown.
    """

    file: RemoteFile
    route: Route
    claimant: Claimant
    report: Callable[[int, int | None], None]
