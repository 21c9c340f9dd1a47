"""Wrong bytes in a mirror's cache are replaced there, once another attempt shows where they are.

A mirror keeps what it has for as long as it likes, and each further node would take the same wrong
bytes first. So the node that has found them asks the mirror to fetch those ranges anew. All nodes
of a fleet find them at the same time: each waits for a random while, and looks first whether
another has done it, for each renewal costs the origin a slice.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from .faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .mirrors import MirrorSite, Route
    from .provenance import SentRange
    from .transfer import Transfer
    from .types import RemoteFile

__all__ = ["Repairs"]

log = logging.getLogger("craftcached")

SPREAD_SECONDS = 3.0


class Repairs:
    """Has mirrors replace wrong ranges, in the background; to be closed after its last use.

    The mutable state: the running tasks, which change on the event loop.

    Args:
        transfer: Makes the requests.
        chance: Returns a random number from 0 to 1.
    """

    def __init__(self, transfer: Transfer, chance: Callable[[], float] = random.random) -> None:
        self._transfer = transfer
        self._chance = chance
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, file: RemoteFile, route: Route, wrong: Sequence[SentRange]) -> None:
        """Have the mirrors that sent ``wrong`` replace it; returns at once."""
        for sent in wrong:
            if site := route.sites.get(sent.mirror):
                task = asyncio.create_task(self._replace(file, route, site, sent))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _replace(
        self, file: RemoteFile, route: Route, site: MirrorSite, sent: SentRange
    ) -> None:
        await asyncio.sleep(self._chance() * SPREAD_SECONDS)
        then = replace(file, attempt=sent.attempt)
        name, span = site.mirror.rule.name, sent.span
        try:
            if await self._transfer.digest(then, route, site, span) == sent.digest:
                await self._transfer.digest(then, route, site, span, renewed=True)
                log.info("mirror %s fetched %d-%d anew", name, span.start, span.stop - 1)
        except Fault as fault:
            log.info("mirror %s does not replace wrong bytes: %s", name, fault.message)
