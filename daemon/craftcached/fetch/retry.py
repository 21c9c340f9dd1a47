"""Which fault is worth another try, and after what wait: pure policy.

Waits are drawn with full jitter (uniformly between zero and a bound that doubles), so that the
nodes of a cluster that failed together do not return together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from .faults import Fault, Trouble

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .settings import EngineSettings

__all__ = ["RetryPolicy", "requested_wait"]

_RATE_LIMIT_RESET = re.compile(r"(?:^|;)\s*t=(\d+)")
_PLAIN_SECONDS = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently one range is tried.

    Attributes:
        attempts: Tries in a row without a byte, the first included.
        backoff_seconds: Bound of the first wait.
        max_backoff_seconds: Bound of every wait.
    """

    attempts: int
    backoff_seconds: float
    max_backoff_seconds: float

    @classmethod
    def from_settings(cls, settings: EngineSettings) -> RetryPolicy:
        """The policy that the settings describe."""
        return cls(settings.attempts, settings.backoff_seconds, settings.max_backoff_seconds)

    def wait(self, fault: Fault, failures: int, chance: float) -> float | None:
        """Seconds to wait before the next try, or None when there should be none.

        Args:
            fault: The latest failure.
            failures: Number of failures in a row, this one included.
            chance: A random number from 0 to 1.
        """
        asked = fault.retry_after
        if failures >= self.attempts or (asked is not None and asked > self.max_backoff_seconds):
            return None
        if fault.trouble is Trouble.EXPIRED and failures == 1:
            return 0.0
        bound = min(self.backoff_seconds * 2.0 ** (failures - 1), self.max_backoff_seconds)
        return max(chance * bound, asked or 0.0)


def requested_wait(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """The seconds for which an origin asks to be left alone, or None.

    Understands Retry-After (seconds or a date) and the reset time of the RateLimit header that
    the Hub sends (``"api";r=0;t=55``).
    """
    after = headers.get("Retry-After", "").strip()
    if _PLAIN_SECONDS.fullmatch(after):
        return float(after)
    if after:
        try:
            date = parsedate_to_datetime(after)
        except ValueError:
            return None
        moment = now or datetime.now(UTC)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - moment).total_seconds())
    reset = _RATE_LIMIT_RESET.search(headers.get("RateLimit", ""))
    return float(reset[1]) if reset else None
