"""The number of connections of one download: as many as make it faster, and no more.

A hill climb. It doubles the number while that raises the throughput noticeably, and falls back to
the number before when it does not. One measurement may be wrong, and lines and neighbours change:
so the doubling is tried again, soon at first, then more and more seldom while it keeps failing.
"""

from __future__ import annotations

__all__ = ["Concurrency", "INTERVAL_SECONDS", "SHORTEST_STAY", "LONGEST_STAY"]

INTERVAL_SECONDS = 0.25
"""Time for which the throughput is measured before each decision."""

WORTHWHILE_GAIN = 1.15
"""Factor on the throughput for which more connections are kept."""

SHORTEST_STAY = 2
"""Decisions to stay after the first growth in a row that failed; each further one doubles it."""

LONGEST_STAY = 40
"""The most decisions to stay."""


class Concurrency:
    """The wanted number of connections of one download; starts with one.

    Args:
        limit: The most that may be wanted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._wanted = 1
        self._before = 0
        """The number before a growth on trial, to fall back to; 0 when none is on trial."""
        self._rate_before = 0.0
        self._stay = SHORTEST_STAY
        self._staying = 0
        """Decisions for which the number still stays."""

    @property
    def wanted(self) -> int:
        """Number of connections that there should be now."""
        return self._wanted

    def observe(self, rate: float) -> None:
        """Decide anew, after an interval in which ``rate`` bytes a second arrived."""
        if self._staying:
            self._staying -= 1
        elif not self._before:
            self._try_more(rate)
        elif rate >= self._rate_before * WORTHWHILE_GAIN:
            self._stay = SHORTEST_STAY
            self._try_more(rate)
        else:
            self._settle(self._before)

    def back_off(self) -> None:
        """The origin complained of too many requests: halve, and stay there for long."""
        self._stay = LONGEST_STAY
        self._settle(max(1, self._wanted // 2))

    def _try_more(self, rate: float) -> None:
        more = min(self._wanted * 2, self._limit)
        self._before = self._wanted if more > self._wanted else 0
        self._rate_before = rate
        self._wanted = more

    def _settle(self, wanted: int) -> None:
        self._wanted = wanted
        self._before = 0
        self._staying = self._stay
        self._stay = min(self._stay * 2, LONGEST_STAY)
