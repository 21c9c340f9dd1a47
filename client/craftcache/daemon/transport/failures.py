"""The exceptions by which a request ends without an answer from the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from craftcache.errors import CraftcacheError
    from craftcache.wire import FallbackReason

__all__ = ["Busy", "DaemonUnavailable", "Cancelled"]


class DaemonUnavailable(Exception):  # internal, never seen by users
    """The daemon cannot serve a request, for a reason that the user need not mend.

    It is absent, refuses, goes silent, speaks another protocol, is overloaded or fails by its own
    fault; or its token may not read a source that this process's own token perhaps may. The text
    says which.

    Args:
        reason: Why, for people.
        refusal: See below.
        kind: See below.

    Attributes:
        refusal: The daemon's error in that last case; None in the others.
        kind: Why, in a word.
    """

    def __init__(
        self,
        reason: str,
        refusal: CraftcacheError | None = None,
        *,
        kind: FallbackReason = "failed",
    ) -> None:
        super().__init__(reason)
        self.refusal = refusal
        self.kind: FallbackReason = kind


class Busy(Exception):  # internal, caught by WorkerSocket.ask
    """The daemon is at its limits, and says when to ask again.

    Attributes:
        retry_after: Seconds after which to ask again.
    """

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Cancelled(BaseException):
    """The request was cancelled while it waited; as in asyncio, not an error to handle."""
