"""The faults of one request, classified by what helps.

A :class:`Fault` never leaves the engine: either another request mends it, or it becomes one of
the errors of :mod:`craftcache.errors` when patience ends. What no further request can mend
(no such file, access denied, policy) is raised as that error at once.
"""

from __future__ import annotations

from enum import Enum

from craftcache.errors import AccessDenied, CraftcacheError, IntegrityError, Unavailable

__all__ = ["Trouble", "BEGIN_AGAIN", "UNANSWERED", "Fault"]


class Trouble(Enum):
    """What helps against a fault."""

    LOST = "lost"
    """The connection failed or broke off: ask again for what is missing."""
    STALLED = "stalled"
    """Too few bytes for too long: ask again, on another connection."""
    BUSY = "busy"
    """The origin asks for patience (408, 429, 5xx): wait, then ask again, with less haste."""
    EXPIRED = "expired"
    """A signed address is no longer honoured: ask the file's own URL for a new one."""
    CHANGED = "changed"
    """The file at the origin is another one than before: begin again with nothing kept."""
    UNSPLITTABLE = "unsplittable"
    """Ranges cannot be relied on: begin again, and ask for the whole file in one answer."""
    ELSEWHERE = "elsewhere"
    """A mirror failed: ask the next one or the origin, at once. No failure of the file's."""


BEGIN_AGAIN = frozenset({Trouble.CHANGED, Trouble.UNSPLITTABLE})
"""Troubles after which nothing of what came so far may be kept."""

UNANSWERED = frozenset({Trouble.LOST, Trouble.STALLED, Trouble.BUSY})
"""Troubles of a server that cannot be reached, or not at this moment."""


class Fault(Exception):
    """One request failed in a way that a further request may mend.

    Attributes:
        trouble: Kind of the fault, by what helps.
        message: What happened, without a query string or a token.
        retry_after: Seconds that the origin asked to be left alone, if it did.
    """

    def __init__(self, trouble: Trouble, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.message = message
        self.retry_after = retry_after

    def to_error(self, source: str) -> CraftcacheError:
        """The error that the caller sees when nothing more is tried."""
        if self.trouble is Trouble.CHANGED:
            return IntegrityError(
                self.message,
                source=source,
                hint="The origin replaces the file while it is read; try again later",
                retryable=True,
            )
        if self.trouble is Trouble.EXPIRED:
            return AccessDenied(
                self.message,
                source=source,
                hint="A fresh signature is refused as well; check the machine's clock",
            )
        return Unavailable(
            self.message,
            source=source,
            hint="What came so far is kept, and a later try goes on from there",
            retry_after=self.retry_after,
        )
