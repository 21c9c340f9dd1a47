"""Fetches one file by several requests at once, each for one range of it."""

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
    from .reply import RangeReply
    from .spans import Span
    from .writer import Writer

__all__ = ["RangedDownload"]

log = logging.getLogger("craftcached")

MIN_PIECE_BYTES = 1024 * 1024
"""Bytes asked for in one request at the start, while little has come."""

AFFORDABLE_SHARE = 12
"""All requests under way together ask for at most this part (a twelfth) of the bytes that came in
this run. When the process is killed, on average half of that has not come yet and is asked for
again: less than a twentieth of the run's bytes."""

PROGRESS_BYTES = 64 * 1024
"""Bytes that a broken request must have brought to count as progress rather than as a failure."""


class RangedDownload:
    """The requests for one version of one file.

    The state (number of workers, the URL to ask, the quiet time) changes on the event loop between
    awaits, so there is no lock.

    Args:
        request: The file, its claimant and its reporter.
        context: The limits, threads and connections that all downloads share.
        pieces: The missing ranges of the file.
        writer: Writes, hashes and syncs the bytes.
        etag: The version's strong validator; may be None where the promise has a digest.
        url: The address to ask: the file's own URL, or the one it is known to redirect to.
    """

    def __init__(
        self,
        request: FetchRequest,
        context: FetchContext,
        pieces: Pieces,
        writer: Writer,
        *,
        etag: str | None,
        url: str,
    ) -> None:
        self._request = request
        self._context = context
        self._pieces = pieces
        self._writer = writer
        self._etag = etag
        self._url = url
        settings = context.settings
        self._concurrency = Concurrency(
            min(settings.max_connections, settings.max_connections_per_host)
        )
        self._workers = 0
        self._quiet_until = 0.0
        """The event loop's time until which the origin has asked for no request."""
        self._all_here = asyncio.Event()

    async def run(self) -> None:
        """Fetch all missing ranges.

        Raises:
            Fault: The file has changed, or cannot be had in ranges.
            CraftcacheError: No further request helps.
        """
        async with asyncio.TaskGroup() as group:
            while not self._pieces.is_done:
                # The ramp may want more workers than an interval ago, or some have ended because
                # all ranges were claimed, and a failed request has given one back since.
                while self._workers < self._concurrency.wanted and self._pieces.has_missing:
                    self._workers += 1  # here, as the task itself only starts at the next await
                    group.create_task(self._work())
                await self._observe()

    async def take(self, reply: RangeReply, claim: Span) -> None:
        """Write the bytes of ``reply`` for ``claim``; they may end before the range does.

        Raises:
            Fault: The answer is not of this version, or broke off.
        """
        self._check(reply)
        self._url = reply.url  # the redirect's target, which the next requests ask directly
        position = claim.start
        while chunks := await reply.block():
            written = await self._writer.put(position, chunks)
            self._pieces.written(written)
            position = written.stop
        if self._pieces.is_done:
            self._all_here.set()

    async def _observe(self) -> None:
        """Tell the ramp the bytes a second of one interval; return early when all has come."""
        loop = asyncio.get_running_loop()
        began, received = loop.time(), self._request.claimant.received
        try:
            async with asyncio.timeout(INTERVAL_SECONDS):
                await self._all_here.wait()
        except TimeoutError:
            gained = self._request.claimant.received - received
            self._concurrency.observe(gained / (loop.time() - began))

    async def _work(self) -> None:
        failures = 0
        try:
            # Ends when the ramp wants fewer workers, or when every missing range is claimed.
            while self._workers <= self._concurrency.wanted and (claim := self._claim()):
                try:
                    await self._bring(claim)
                    failures = 0
                except Fault as fault:
                    # A mirror is left out from now on, so that this comes to an end.
                    if fault.trouble is Trouble.ELSEWHERE:
                        continue
                    # No range of this version can be fetched any more: end all workers.
                    if fault.trouble in BEGIN_AGAIN:
                        raise
                    # A server that breaks off after many bytes still gets the file across; only
                    # failures in a row that bring nearly nothing use up the patience.
                    brought = self._pieces.written_of(claim)
                    failures = 1 if brought >= PROGRESS_BYTES else failures + 1
                    await self._wait_out(fault, failures)
        finally:
            self._workers -= 1

    def _claim(self) -> Span | None:
        """The next range to ask for, no larger than AFFORDABLE_SHARE allows.

        Of a mirror a whole slice, up to its end: what it fetches for a smaller request is no less,
        and what is lost was not far away.
        """
        route = self._request.route
        if (slice_bytes := route.slice_bytes) is not None and route.is_served:
            return self._pieces.claim(slice_bytes, boundary=slice_bytes)
        affordable = self._request.claimant.received // (
            AFFORDABLE_SHARE * self._concurrency.wanted
        )
        most = self._context.settings.piece_bytes
        size = min(max(affordable, MIN_PIECE_BYTES), most)
        return self._pieces.claim(size, boundary=slice_bytes)

    async def _bring(self, claim: Span) -> None:
        """Make one request for ``claim``."""
        request, context = self._request, self._context
        try:
            await self._wait_quiet()
            url = self._url  # of this request: others may change the attribute meanwhile
            try:
                async with (
                    context.connections.one(
                        host_of(request.route.address(url, claim.start)), request.claimant
                    ),
                    context.transfer.open(
                        request.file,
                        request.route,
                        url=url,
                        span=claim,
                        etag=self._etag,
                        claimant=request.claimant,
                    ) as reply,
                ):
                    await self.take(reply, claim)
            except Fault as fault:
                # The redirect's target may have expired: ask the file's own URL for a new one,
                # unless another request has found one meanwhile. A mirror's failure is not its.
                if self._url == url and fault.trouble is not Trouble.ELSEWHERE:
                    self._url = request.file.url
                raise
        finally:
            # Whatever of the claim was not written is missing again, for any worker to claim.
            self._pieces.give_back(claim)

    def _check(self, reply: RangeReply) -> None:
        """Raise a Fault if ``reply`` is not a range of this version of the file."""
        shown = shown_url(reply.url)
        same_etag = reply.etag == self._etag
        # The same version, sent whole: the server has no ranges. Another version: If-Range makes
        # the server send it whole.
        if not reply.partial:
            trouble = Trouble.UNSPLITTABLE if same_etag and reply.etag else Trouble.CHANGED
            raise Fault(trouble, f"{shown} sends the whole file where a range was asked for")
        if reply.total not in (None, self._pieces.total):
            raise Fault(Trouble.CHANGED, f"{shown} has another size than before")
        # An answer without an ETag is accepted: If-Range, or the digest at the end, tells versions.
        if not same_etag and None not in (reply.etag, self._etag):
            raise Fault(Trouble.CHANGED, f"{shown} has another version than before")

    async def _wait_quiet(self) -> None:
        wait = self._quiet_until - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)

    async def _wait_out(self, fault: Fault, failures: int) -> None:
        jitter = random.random()  # noqa: S311  # no secret: it only spreads retries out
        wait = self._context.policy.wait(fault, failures, jitter)
        if wait is None:
            raise fault.to_error(self._request.file.source)
        log.info("%s: %s; next try in %.1f s", self._request.file.source, fault.message, wait)
        # The origin asked for patience: that holds for all workers, not only for this one.
        if fault.trouble is Trouble.BUSY:
            self._concurrency.back_off()
            self._quiet_until = asyncio.get_running_loop().time() + wait
        await asyncio.sleep(wait)
