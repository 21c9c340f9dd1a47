"""A circuit breaker: a server that fails is left alone for a while, then tried by one request.

closed --failed--> open --its time passes--> half-open --succeeded--> closed
^                            |
+---failed, for twice as long+
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


class Circuit:
    """The circuit of one server; every step is synchronous, so there is no lock.

    Args:
        clock: Returns seconds that only grow.
        chance: Returns a random number from 0 to 1; it spreads the nodes that return to a server.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._chance = chance
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

    def may_ask(self) -> bool:
        """Whether a request may be made now."""
        if not self._failures:
            return True
        return not self._on_trial and self._clock() >= self._closed_at

    def asked(self) -> float:
        """Note a request, which ends by succeeded, failed or left; returns when it began."""
        self._on_trial = self.is_open
        return self._clock()

    def succeeded(self, began: float) -> bool:
        """Close the circuit; returns whether it was open.

        Args:
            began: When the request began; one from before the circuit was opened closes nothing.
        """
        if began < self._opened_at:
            return False
        was_open = self.is_open
        self._failures, self._on_trial = 0, False
        return was_open

    def failed(self, began: float) -> float | None:
        """Open the circuit; returns for how many seconds, None where it was open already.

        Args:
            began: When the request began. One that was under way when the circuit was opened says
                nothing new.
        """
        if began < self._opened_at:
            return None
        return self.trip(FIRST_SECONDS * 2.0 ** min(self._failures, 10))

    def trip(self, seconds: float) -> float:
        """Open the circuit for about so many seconds; returns for how many."""
        seconds = min(seconds, LONGEST_SECONDS) * (0.75 + self._chance() / 2)
        self._failures += 1
        self._on_trial = False
        self._opened_at = self._clock()
        self._closed_at = self._opened_at + seconds
        return seconds

    def left(self) -> None:
        """Note that a request ended without saying anything about the server."""
        self._on_trial = False
