"""How the daemon is, and how its models are, at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.dependencies import DependencyState

    from .database import Pin

__all__ = ["ModelState", "Status"]


@dataclass(frozen=True, slots=True)
class Status:
    """How the daemon is.

    Attributes:
        version: Of the software.
        pid: Of the process.
        started_at: Seconds since the epoch.
        cache_dir: Where the models are.
        socket_dir: Where the sockets are.
        models: How many are cached.
        bytes: Of all cached models, each blob once.
        requests: How many different sources are being fetched, verified or published.
        queued: How many warms are promised and not done.
        resident_bytes: Of all cached models, that are in memory; None where the kernel does not
            say.
        has_token: Whether it can ask the Hub for what is not public.
        watches: How many watched directories are in which state.
    """

    version: str
    pid: int
    started_at: float
    cache_dir: str
    socket_dir: str
    models: int
    bytes: int
    requests: int
    queued: int
    resident_bytes: int | None
    has_token: bool
    watches: dict[str, int]


@dataclass(frozen=True, slots=True)
class ModelState:
    """A published model, and how it is held.

    Attributes:
        manifest: What it consists of.
        files: Of them those that are in place and untouched.
        resident_bytes: Of its files, that are in memory; None where the kernel does not say.
        pin: What keeps it, or None.
        needs: What it needs, and whether that is here.
    """

    manifest: Manifest
    files: tuple[FileRecord, ...]
    resident_bytes: int | None
    pin: Pin | None
    needs: tuple[DependencyState, ...] = ()
