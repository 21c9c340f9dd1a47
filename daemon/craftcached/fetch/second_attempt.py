"""Wrong bytes are fetched once more before they are an error.

What one answer spoiled, or what a cache on the way holds wrong, is right in a second attempt that
begins again, over new connections and past such caches. The publisher's own mistake is not.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.errors import IntegrityError

from .types import Priority

if TYPE_CHECKING:
    from collections.abc import Callable

    from .types import Fetched, Fetcher, RemoteFile

__all__ = ["SecondAttempt"]

log = logging.getLogger("craftcached")


class SecondAttempt:
    """A Fetcher that lets another Fetcher try once more if bytes did not keep their promise.

    The mutable state: the keys whose priority was raised during the first attempt.

    Args:
        fetcher: Does the work; it keeps nothing of wrong bytes.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._hurried: set[str] = set()

    async def fetch(
        self, file: RemoteFile, *, priority: Priority, report: Callable[[int, int | None], None]
    ) -> Fetched:
        """See Fetcher.fetch.

        Raises:
            IntegrityError: Both attempts brought wrong bytes; it says what was seen in each.
        """
        try:
            try:
                return await self._fetcher.fetch(file, priority=priority, report=report)
            except IntegrityError as error:
                first = error.message
            log.warning("%s: %s; it is fetched once more", file.source, first)
            is_urgent = file.key in self._hurried
            return await self._fetcher.fetch(
                replace(file, attempt=file.attempt + 1),
                priority=Priority.WAITED_FOR if is_urgent else priority,
                report=report,
            )
        except IntegrityError as error:
            seen = error.message
            error.message = f"{seen}; fetched twice, the second time past caches on the way, " + (
                "with the same result" if seen == first else f"after a first time: {first}"
            )
            raise
        finally:
            self._hurried.discard(file.key)

    def hurry(self, key: str) -> None:
        """See Fetcher.hurry."""
        self._hurried.add(key)
        self._fetcher.hurry(key)
