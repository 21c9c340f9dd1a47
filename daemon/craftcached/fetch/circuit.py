"""A circuit breaker: a server that fails is left alone for a while, then tried by one request.

closed --failed--> open --its time passes--> half-open --succeeded--> closed
^                            |
+---failed, for twice as long+

One that has served and is lost from one moment to the next may only be started again: it is awaited
for a while, and tried every RETURN_SECONDS, before it counts as failed.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Circuit", "FIRST_SECONDS", "LONGEST_SECONDS"]

FIRST_SECONDS = 1.0
"""Time that a server is left alone after its first failure: short, as one may be an accident."""

LONGEST_SECONDS = 60.0

LONGEST_LOST_SECONDS = 5.0
"""The same of a server that is found to be lost at once, for then a trial costs next to nothing."""

QUICK_SECONDS = 0.5

RETURN_SECONDS = 0.3
"""Time between two trials of a server that is awaited."""


class Circuit:
    """The circuit of one server; every step is synchronous, so there is no lock.

    Args:
        clock: Returns seconds that only grow.
        chance: Returns a random number from 0 to 1; it spreads the nodes that return to a server.
        grace: Seconds for which the server is awaited when it is lost.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        grace: float = 0.0,
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._grace = grace
        self._has_served = False
        self._has_answered = False
        """Whether it has begun to answer since the last failure."""
        self._awaited_until: float | None = None
        """While it is awaited, until when, or until the end of a trial that began before."""
        self._failures = 0
        """Failures in a row; those of requests that were under way together count once."""
        self._opened_at = float("-inf")
        self._closed_at = float("-inf")
        """When the time of an open circuit is over."""
        self._on_trial = False

    @property
    def is_open(self) -> bool:
        """Whether the server has failed and not succeeded since."""
        return self._failures > 0

    @property
    def is_awaited(self) -> bool:
        """Whether it may be there again in a moment: then what it should bring can wait."""
        return self._awaited_until is not None and (
            self._on_trial or self._clock() < self._awaited_until
        )

    def may_ask(self) -> bool:
        """Whether a request may be made now."""
        if not self._failures or self._has_answered:
            return True
        return not self._on_trial and self._clock() >= self._closed_at

    def asked(self) -> float:
        """Note a request, which ends by succeeded, failed or left; returns when it began."""
        self._on_trial = self.is_open and not self._has_answered
        return self._clock()

    def answered(self, began: float) -> None:
        """Note that a good answer has begun: all may ask, though none has come whole yet."""
        if began >= self._opened_at:
            self._has_answered, self._on_trial, self._awaited_until = True, False, None

    def succeeded(self, began: float) -> bool:
        """Close the circuit; returns whether it was open.

        Args:
            began: When the request began; one from before the circuit was opened closes nothing.
        """
        if began < self._opened_at:
            return False
        was_open = self.is_open
        self._failures, self._on_trial = 0, False
        self._has_served, self._awaited_until = True, None
        return was_open

    def failed(self, began: float, *, is_lost: bool = False) -> float | None:
        """Open the circuit; returns for how many seconds, None where that is nothing new.

        Args:
            began: When the request began. One that was under way when the circuit was opened says
                nothing new.
            is_lost: Whether the connection broke or could not be made, as when the server is
                started again.
        """
        if began < self._opened_at:
            return None
        if is_lost and self._awaited_until is not None and self._clock() < self._awaited_until:
            self._open(RETURN_SECONDS)
            return None
        if is_lost and self._has_served and not self._failures and self._grace:
            self._failures = 1
            self._awaited_until = self._clock() + self._spread(self._grace)
            return self._open(RETURN_SECONDS)
        is_cheap = is_lost and self._clock() - began < QUICK_SECONDS
        longest = LONGEST_LOST_SECONDS if is_cheap else LONGEST_SECONDS
        return self.trip(min(FIRST_SECONDS * 2.0 ** min(self._failures, 10), longest))

    def trip(self, seconds: float) -> float:
        """Open the circuit for about so many seconds; returns for how many."""
        self._failures += 1
        self._awaited_until = None
        return self._open(min(seconds, LONGEST_SECONDS))

    def left(self) -> None:
        """Note that a request ended without saying anything about the server."""
        self._on_trial = False

    def _open(self, seconds: float) -> float:
        seconds = self._spread(seconds)
        self._on_trial = self._has_answered = False
        self._opened_at = self._clock()
        self._closed_at = self._opened_at + seconds
        return seconds

    def _spread(self, seconds: float) -> float:
        return seconds * (0.75 + self._chance() / 2)
