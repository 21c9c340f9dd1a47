"""The state machine of a watch: decides from snapshots and times when a pair is taken.

    absent, gone    there is no such directory, not yet or not any more
    partial         a file that a generation needs is missing
    settling        all is there, and was not quiet for long enough
    verifying       this very state is being copied, hashed and inspected
    ready           this very state is a generation
    invalid         it cannot be one; the detail says why

Everything is a value: nothing here reads a clock or a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Literal, TypeAlias

from .snapshot import Snapshot

if TYPE_CHECKING:
    from .snapshot import Pair

__all__ = ["State", "WatchState"]

PATIENT_SETTLES = 3
"""Settle times for which all must be quiet where a file that belongs to the pair is on its way: the
network may stall for a while."""

OTHERS_SETTLES = 6
"""Settle times that a pair waits for at most, while files move beside it that are none of its
own."""

State: TypeAlias = Literal["absent", "partial", "settling", "verifying", "ready", "invalid", "gone"]


@dataclass(frozen=True, slots=True)
class WatchState:
    """The state of a watched directory.

    Attributes:
        settle: Seconds without a change after which it is taken.
        look: The last snapshot.
        since: When that was seen first.
        was_there: Whether the directory was ever seen.
        in_hand: The pair that is being verified.
        judged: The pair that was verified last.
        verdict: Why that is no generation; empty where it is one.
        retry_at: When it is tried again, where the fault was not the files'.
        moved_at: When something beside the pair was seen to move last.
    """

    settle: float
    look: Snapshot = field(default_factory=Snapshot)
    since: float = 0.0
    was_there: bool = False
    in_hand: Pair | None = None
    judged: Pair | None = None
    verdict: str = ""
    retry_at: float | None = None
    moved_at: float = -inf

    @property
    def state(self) -> State:
        """The state, in one word."""
        if self.look.fault:
            return "invalid"
        if self.look.directory is None:
            return "gone" if self.was_there else "absent"
        if self.look.missing:
            return "partial"
        if self.in_hand == self.look.pair:
            return "verifying"
        if self.judged == self.look.pair:
            return "invalid" if self.verdict else "ready"
        return "settling"

    @property
    def is_daemons_fault(self) -> bool:
        """Whether the pair may be right, and the daemon failed at it; it is tried again."""
        is_tried_again = self.retry_at is not None or self.in_hand is not None
        return bool(self.verdict) and self.judged == self.look.pair and is_tried_again

    @property
    def detail(self) -> str:
        """Explanation of the state for people; may be empty."""
        match self.state:
            case "partial":
                return f"waits for {' and '.join(self.look.missing)}"
            case "absent":
                return "the directory is not there yet"
            case "gone":
                return "the directory was there, and is not any more"
            case "invalid":
                return self.look.fault or self.verdict
        return ""

    @property
    def due_at(self) -> float | None:
        """Time at which the pair is taken if nothing changes; None if more than time is missing."""
        if self.in_hand is not None or not self.look.is_complete:
            return None
        if self.judged == self.look.pair:
            return self.retry_at
        # Files that may not belong to the pair delay it only for a while: a program may write a
        # log there for ever.
        moved_at = min(self.moved_at, self.since + (OTHERS_SETTLES - 1) * self.settle)
        settles = PATIENT_SETTLES if self.look.awaits_more else 1
        return max(self.since + settles * self.settle, moved_at + self.settle)

    def saw(self, look: Snapshot, now: float) -> WatchState:
        """The state after another look at the directory."""
        is_there = self.was_there or look.directory is not None
        is_quiet = replace(look, others="") == replace(self.look, others="")
        since = self.since if is_quiet else now
        moved_at = self.moved_at if look.others == self.look.others else now
        return replace(self, look=look, since=since, moved_at=moved_at, was_there=is_there)

    def took(self) -> WatchState:
        """The state once the pair that was seen last is being verified."""
        return replace(self, in_hand=self.look.pair, retry_at=None)

    def published(self) -> WatchState:
        """The state once the pair in hand is published."""
        return replace(self, in_hand=None, judged=self.in_hand, verdict="")

    def refused(self, reason: str, retry_at: float | None = None) -> WatchState:
        """The state once the pair in hand is refused: for good, or until ``retry_at``."""
        return replace(self, in_hand=None, judged=self.in_hand, verdict=reason, retry_at=retry_at)

    def forgotten(self) -> WatchState:
        """The state once the generation made of the last pair is lost."""
        return replace(self, judged=None, verdict="", retry_at=None)

    def changed(self, now: float) -> WatchState:
        """The state once the files turned out to be written to while they were in hand."""
        return replace(self, in_hand=None, since=now)
