"""How a request ends without an answer of the daemon's, as seen from the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from craftcache.errors import CraftcacheError

__all__ = ["Busy", "DaemonUnavailable", "Cancelled"]


class DaemonUnavailable(Exception):  # a state of affairs, never seen by users
    """The daemon cannot serve a request, for a reason that is not the user's to mend.

    It is absent, refuses, goes silent, speaks another protocol, is overloaded or fails by its own
    fault; or it may not read what this process perhaps may. The text says which.

    Attributes:
        refusal: What the daemon said where it may not read what this process perhaps may.
    """

    def __init__(self, reason: str, refusal: CraftcacheError | None = None) -> None:
        super().__init__(reason)
        self.refusal = refusal


class Busy(Exception):  # caught where it is waited for
    """The daemon is at its limits, and says when to ask again.

    Attributes:
        retry_after: Seconds until then.
    """

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Cancelled(BaseException):
    """The request was withdrawn while it waited; like a cancellation, not an error to handle."""
