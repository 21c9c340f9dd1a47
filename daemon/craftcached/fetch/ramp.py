"""How many connections one download should have: as many as make it faster, and no more.

A hill climb. It doubles the number while that raises the throughput noticeably, falls back to the
number before when it does not, and then stays, trying one more now and again, because lines and
neighbours change.
"""

from __future__ import annotations

__all__ = ["Ramp", "INTERVAL_SECONDS"]

INTERVAL_SECONDS = 0.25
"""How long the throughput is measured before each decision."""

WORTHWHILE_GAIN = 1.15
"""Factor on the throughput for which more connections are kept."""

SETTLED_INTERVALS = 20
"""Decisions to stay, before one more connection is tried again."""


class Ramp:
    """The wanted number of connections of one download; starts with one.

    Args:
        limit: The most that may be wanted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._wanted = 1
        self._before = 1
        """The number before the last growth, to fall back to."""
        self._rate_before = 0.0
        self._settled = 0
        """Decisions for which the number stays."""

    @property
    def wanted(self) -> int:
        """How many connections there should be now."""
        return self._wanted

    def observe(self, rate: float) -> None:
        """Decide anew, after an interval in which ``rate`` bytes a second arrived."""
        if self._settled:
            self._settled -= 1
            if not self._settled:
                self._grow(self._wanted + 1, rate)
        elif rate >= self._rate_before * WORTHWHILE_GAIN:
            self._grow(self._wanted * 2, rate)
        else:
            self._wanted = self._before
            self._settled = SETTLED_INTERVALS

    def back_off(self) -> None:
        """The origin complained of too many requests: halve, and stay there for a while."""
        self._wanted = max(1, self._wanted // 2)
        self._before = self._wanted
        self._settled = SETTLED_INTERVALS

    def _grow(self, wanted: int, rate: float) -> None:
        self._before = self._wanted
        self._rate_before = rate
        self._wanted = min(wanted, self._limit)
        if self._wanted == self._before:
            self._settled = SETTLED_INTERVALS
