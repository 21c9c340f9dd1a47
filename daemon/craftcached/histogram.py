"""A histogram as Prometheus counts it: how many measurements were no more than each bound."""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["Histogram"]


class Histogram:
    """Counts observations by upper bounds; for one event loop, so it has no lock.

    Args:
        bounds: The upper bounds, ascending; above the last of them there is one more bucket.

    Attributes:
        sum: Sum of all observations.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Each bound as Prometheus writes it, and how many observations are not above it."""
        labels = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        total, cumulated = 0, []
        for label, count in zip(labels, self._counts, strict=True):
            total += count
            cumulated.append((label, float(total)))
        return cumulated
