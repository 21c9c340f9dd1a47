"""The schedule of the scrub: which file is hashed next, when and how fast, as pure functions.

Every file has been hashed once when it came. It is due again when half the period is over since it
was hashed last, the oldest first, so the other half is left for the work itself, for a node that
was switched off, and for fetches that go first. The rate grows where that would not be enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DUE_SHARE", "ScheduledFile", "ScrubTurn", "scheduled_turns"]

BYTES_PER_SECOND = 64 * 1024 * 1024
"""Rate of the scrub while it need not hurry: some twentieth of one core's hashing."""

DUE_SHARE = 0.5
"""Share of the period after which a file is due."""

PATIENT_SHARE = 0.75
"""Share of the period until which other work goes first."""

RETRY_SECONDS = 600.0
"""Time after which a file that could not be mended is tried again."""


@dataclass(frozen=True, slots=True)
class ScheduledFile:
    """A published file as the schedule sees it.

    Attributes:
        path: Path of the file, relative to the cache directory.
        size: Size in bytes.
        hashed_at: Time when it was last hashed, in seconds since the epoch.
        is_broken: Whether it was wrong or missing then, and is not mended yet.
        is_lost: Whether it turned out wrong since, was set aside, and nobody has tried to mend it.
    """

    path: str
    size: int
    hashed_at: float
    is_broken: bool = False
    is_lost: bool = False

    def due_at(self, period: float) -> float:
        """Time when it is to be hashed again, in seconds since the epoch."""
        if self.is_lost:
            return self.hashed_at
        share = period * DUE_SHARE
        return self.hashed_at + (min(RETRY_SECONDS, share) if self.is_broken else share)


@dataclass(frozen=True, slots=True)
class ScrubTurn:
    """The next file's turn.

    Attributes:
        file: The file.
        at: Time when it is due, in seconds since the epoch; it may be past.
        bytes_per_second: Rate at which it is to be hashed.
        is_patient: Whether other work may go first.
    """

    file: ScheduledFile
    at: float
    bytes_per_second: float
    is_patient: bool


def scheduled_turns(files: Iterable[ScheduledFile], now: float, period: float) -> list[ScrubTurn]:
    """The turns of the files that are due, in order; where none is, that of the next one alone.

    Args:
        files: All published files.
        now: The present time, in seconds since the epoch.
        period: Seconds within which each file must be hashed again.
    """
    ordered = sorted(files, key=lambda file: (file.due_at(period), file.path))
    if not ordered:
        return []
    due = [file for file in ordered if file.due_at(period) <= now]
    deadline = min(file.hashed_at for file in ordered) + period
    # Twice as fast as would do: more files become due while these are being hashed.
    needed = 2 * sum(file.size for file in due) / max(deadline - now, 1.0)
    return [
        ScrubTurn(
            file,
            file.due_at(period),
            max(BYTES_PER_SECOND, needed),
            now < file.hashed_at + period * PATIENT_SHARE,
        )
        for file in due or ordered[:1]
    ]
