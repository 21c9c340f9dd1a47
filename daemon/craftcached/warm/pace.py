"""How far a running warm has come, how fast it goes on and how long it will still take."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from craftcache.wire import Coming

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.wire import Progress, State

__all__ = ["WarmPace"]

WINDOW_SECONDS = 10.0
"""Time over which the rate is measured: shorter, and it jumps with each stall of one connection."""

SAMPLE_SECONDS = 0.5
"""Time between two measurements."""


class WarmPace:
    """The files of one warm, from its progress; changes on the event loop only, so has no lock.

    Args:
        source: The source, as shown to people.
        clock: Returns the time in seconds; only differences count.

    Attributes:
        began: Time at which the warm began, in seconds since the epoch.
    """

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self.began = time.time()
        self._state: State = "queued"
        # Bytes that are there and in all, of each file that is or was fetched.
        self._files: dict[str, tuple[int, int | None]] = {}
        self._samples: deque[tuple[float, int]] = deque()

    def heard(self, progress: Progress) -> None:
        """Take note of a step; called for every piece that comes."""
        self._state = progress.state
        if progress.file is None or progress.state != "fetching":
            return
        before, _ = self._files.get(progress.file, (0, None))
        self._files[progress.file] = (progress.done, progress.total)
        now = self._clock()
        # What an interrupted download had left came before, and says nothing of the rate; nor do
        # bytes that turned out wrong and are fetched again.
        if not before or progress.done < before:
            self._samples.clear()
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now, self._done))
        while now - self._samples[0][0] > WINDOW_SECONDS:
            self._samples.popleft()

    def coming(self) -> Coming:
        """How it is now."""
        rate = self._rate()
        total = self._total
        left = None if total is None or not rate else max(total - self._done, 0) / rate
        return Coming(
            source=self._source,
            state="fetching" if self._is_fetching else self._state,
            done=self._done,
            total=total,
            bytes_per_second=rate,
            seconds_left=left if self._is_fetching else None,
            began_at=self.began,
        )

    @property
    def _is_fetching(self) -> bool:
        return any(done != total for done, total in self._files.values())

    @property
    def _done(self) -> int:
        return sum(done for done, _ in self._files.values())

    @property
    def _total(self) -> int | None:
        totals = [total for _, total in self._files.values()]
        if not totals or None in totals:
            return None
        return sum(total for total in totals if total is not None)

    def _rate(self) -> float | None:
        """Bytes a second; None where nothing is fetched, or not long enough to say."""
        if not self._samples or not self._is_fetching:
            return None
        began, done = self._samples[0]
        seconds = self._clock() - began
        return max(self._done - done, 0) / seconds if seconds >= SAMPLE_SECONDS else None
