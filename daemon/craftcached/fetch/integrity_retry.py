"""Wrong bytes are fetched again before they are an error: two attempts, or three with mirrors.

A second attempt begins anew, over new connections and past caches on the way, so it mends what one
answer or such a cache spoiled. It does not mend the publisher's own mistake. Where mirrors stand
for the origin, a third attempt asks the origin alone.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.errors import IntegrityError

from .mirrors import Mirrors
from .types import Priority

if TYPE_CHECKING:
    from collections.abc import Callable

    from .types import Fetched, Fetcher, RemoteFile

__all__ = ["IntegrityRetry"]

log = logging.getLogger("craftcached")


class IntegrityRetry:
    """A Fetcher that lets another Fetcher try again if bytes did not keep their promise.

    ``Mirrors.attempts`` is the number of attempts: two, or three where mirrors have the file.

    The mutable state: the keys whose priority was raised during an attempt.

    Args:
        fetcher: Does the work; it keeps nothing of wrong bytes.
        mirrors: The mirrors that it asks; None for none.
    """

    def __init__(self, fetcher: Fetcher, mirrors: Mirrors | None = None) -> None:
        self._fetcher = fetcher
        self._mirrors = mirrors or Mirrors()
        self._hurried: set[str] = set()

    async def fetch(
        self, file: RemoteFile, *, priority: Priority, report: Callable[[int, int | None], None]
    ) -> Fetched:
        """See Fetcher.fetch.

        Raises:
            IntegrityError: All attempts brought wrong bytes; it says what was seen in each.
        """
        attempts = self._mirrors.attempts(file)
        seen: list[str] = []
        try:
            while True:
                is_urgent = file.key in self._hurried
                try:
                    return await self._fetcher.fetch(
                        replace(file, attempt=file.attempt + len(seen)),
                        priority=Priority.WAITED_FOR if is_urgent else priority,
                        report=report,
                    )
                except IntegrityError as error:
                    seen.append(error.message)
                    if len(seen) == attempts:
                        error.message = _told(seen)
                        raise
                log.warning("%s: %s; it is fetched once more", file.source, seen[-1])
        finally:
            self._hurried.discard(file.key)

    def hurry(self, key: str) -> None:
        """See Fetcher.hurry."""
        self._hurried.add(key)
        self._fetcher.hurry(key)


def _told(seen: list[str]) -> str:
    """What the user is told of attempts that all failed."""
    *before, last = seen
    times = {1: "twice, the second time", 2: "three times, the last time"}[len(before)]
    result = "with the same result"
    if others := [message for message in before if message != last]:
        result = f"after a first time: {others[0]}"
    return f"{last}; fetched {times} past caches on the way, {result}"
