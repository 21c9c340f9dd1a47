"""Brings one file by several requests at once, each for one range of it."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from craftcache.sources import shown_url

from .concurrency import INTERVAL_SECONDS, Concurrency
from .faults import BEGIN_AGAIN, Fault, Trouble
from .transfer import host_of

if TYPE_CHECKING:
    from .context import FetchContext, FetchRequest
    from .pieces import Pieces
    from .spans import Span
    from .transfer import RangeReply
    from .writer import Writer

__all__ = ["RangedDownload"]

log = logging.getLogger("craftcached")

MIN_PIECE_BYTES = 1024 * 1024
"""Bytes asked for in one request while nearly nothing has come."""

AFFORDABLE_SHARE = 12
"""All requests under way may ask for this part of what came in this run. On average half of it is
missing when the process is killed: less than a twentieth of the run's bytes is asked for again."""

PROGRESS_BYTES = 64 * 1024
"""Bytes that a broken request must have brought to count as progress rather than as a failure."""


class RangedDownload:
    """The requests for one version of one file.

    Args:
        order: Which file, and for whom.
        bench: What all downloads share.
        pieces: What of the file is missing.
        assembly: Where the bytes go.
        etag: The version's strong validator, or None where the promise has a digest.
        url: Where to ask: the file's own URL, or where it is known to redirect to.
    """

    def __init__(
        self,
        order: FetchRequest,
        bench: FetchContext,
        pieces: Pieces,
        assembly: Writer,
        *,
        etag: str | None,
        url: str,
    ) -> None:
        self._order = order
        self._bench = bench
        self._pieces = pieces
        self._assembly = assembly
        self._etag = etag
        self._url = url
        settings = bench.settings
        self._ramp = Concurrency(min(settings.max_connections, settings.max_connections_per_host))
        self._workers = 0
        self._quiet_until = 0.0
        """The loop's time before which the origin wants no request."""
        self._all_here = asyncio.Event()

    async def run(self) -> None:
        """Bring all that is missing.

        Raises:
            Fault: The file is another one now, or cannot be had in ranges.
            CraftcacheError: No further request helps.
        """
        async with asyncio.TaskGroup() as group:
            while not self._pieces.is_done:
                while self._workers < self._ramp.wanted and self._pieces.has_missing:
                    self._workers += 1
                    group.create_task(self._work())
                await self._observe()

    async def take(self, reply: RangeReply, claim: Span) -> None:
        """Write what ``reply`` brings of ``claim``, which may be less than all of it.

        Raises:
            Fault: The answer is not of this version, or broke off.
        """
        self._check(reply)
        self._url = reply.url
        position = claim.start
        while chunks := await reply.block():
            written = await self._assembly.put(position, chunks)
            self._pieces.written(written)
            position = written.stop
        if self._pieces.is_done:
            self._all_here.set()

    async def _observe(self) -> None:
        """Let the ramp see what one interval brings; shorter if all is here before."""
        loop = asyncio.get_running_loop()
        began, received = loop.time(), self._order.claimant.received
        try:
            async with asyncio.timeout(INTERVAL_SECONDS):
                await self._all_here.wait()
        except TimeoutError:
            gained = self._order.claimant.received - received
            self._ramp.observe(gained / (loop.time() - began))

    async def _work(self) -> None:
        failures = 0
        try:
            while self._workers <= self._ramp.wanted and (claim := self._claim()):
                try:
                    await self._bring(claim)
                    failures = 0
                except Fault as fault:
                    if fault.trouble in BEGIN_AGAIN:
                        raise
                    brought = self._pieces.written_of(claim)
                    failures = 1 if brought >= PROGRESS_BYTES else failures + 1
                    await self._wait_out(fault, failures)
        finally:
            self._workers -= 1

    def _claim(self) -> Span | None:
        """The next range to ask for: no larger than a kill at that moment may cost."""
        affordable = self._order.claimant.received // (AFFORDABLE_SHARE * self._ramp.wanted)
        most = self._bench.settings.piece_bytes
        return self._pieces.claim(min(max(affordable, MIN_PIECE_BYTES), most))

    async def _bring(self, claim: Span) -> None:
        """Make one request for ``claim``."""
        order, bench = self._order, self._bench
        try:
            await self._wait_quiet()
            url = self._url
            try:
                async with (
                    bench.connections.one(host_of(url), order.claimant),
                    bench.transfer.open(
                        order.file, url=url, span=claim, etag=self._etag, claimant=order.claimant
                    ) as reply,
                ):
                    await self.take(reply, claim)
            except Fault:
                if self._url == url:  # another request may have found a better one meanwhile
                    self._url = order.file.url
                raise
        finally:
            self._pieces.give_back(claim)

    def _check(self, reply: RangeReply) -> None:
        """Raise a Fault if ``reply`` is not a range of this version of the file."""
        shown = shown_url(reply.url)
        same_etag = reply.etag == self._etag
        if not reply.partial:
            trouble = Trouble.UNSPLITTABLE if same_etag and reply.etag else Trouble.CHANGED
            raise Fault(trouble, f"{shown} sends the whole file where a range was asked for")
        if reply.total not in (None, self._pieces.total):
            raise Fault(Trouble.CHANGED, f"{shown} has another size than before")
        if not same_etag and None not in (reply.etag, self._etag):
            raise Fault(Trouble.CHANGED, f"{shown} has another version than before")

    async def _wait_quiet(self) -> None:
        wait = self._quiet_until - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)

    async def _wait_out(self, fault: Fault, failures: int) -> None:
        jitter = random.random()  # noqa: S311  # no secret: it only spreads retries out
        wait = self._bench.policy.wait(fault, failures, jitter)
        if wait is None:
            raise fault.to_error(self._order.file.source)
        log.info("%s: %s; next try in %.1f s", self._order.file.source, fault.message, wait)
        if fault.trouble is Trouble.BUSY:
            self._ramp.back_off()
            self._quiet_until = asyncio.get_running_loop().time() + wait
        await asyncio.sleep(wait)
