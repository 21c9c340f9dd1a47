"""How the daemon fails, as seen from the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from craftcache.errors import CraftcacheError

__all__ = ["DaemonFailure", "DaemonAbsent", "DaemonSilent", "DaemonBroken", "Cancelled"]


class DaemonFailure(Exception):
    """The daemon cannot be had, whatever is asked of it; the text says why."""


class DaemonAbsent(DaemonFailure):
    """Nobody listens on the socket, or this user may not connect to it."""


class DaemonSilent(DaemonFailure):
    """Somebody listens, and nothing was heard for longer than the caller is patient."""


class DaemonBroken(DaemonFailure):
    """The daemon failed by its own fault, is overloaded, went away or talks nonsense.

    Attributes:
        error: What the daemon itself said about it, if it said anything.
    """

    def __init__(self, reason: str, error: CraftcacheError | None = None) -> None:
        super().__init__(reason)
        self.error = error


class Cancelled(BaseException):
    """The request was withdrawn while it waited; like a cancellation, not an error to handle."""
