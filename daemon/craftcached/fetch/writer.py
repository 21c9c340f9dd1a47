"""One file being put together in staging: written in place, hashed in order, synced as it grows."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.digests import Hasher

from .hashing import OrderedHash
from .spans import Span, SpanSet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from craftcache.digests import Digests

    from .context import FetchContext, FetchRequest
    from .partial_file import PartialFile

__all__ = ["Writer"]

SYNC_BYTES = 64 * 1024 * 1024
"""Bytes after which the disk is asked to catch up: little enough that the last fsync is short and
a power loss costs little, much enough that syncing does not slow writing down."""

MAX_LAG_BYTES = 16 * 1024 * 1024
"""Bytes that the hash may be behind before the network has to wait for it, so that hashing ends
with the download."""


class Writer:
    """Writes, hashes and syncs the bytes of one download, until the file can be sealed.

    Args:
        request: The file, its claimant and its reporter.
        context: The limits, threads and connections that all downloads share.
        part: The partial file that is written to.
        total: Size of the file in bytes, where known.
        present: Ranges that the partial file has already.
    """

    def __init__(
        self,
        request: FetchRequest,
        context: FetchContext,
        part: PartialFile,
        *,
        total: int | None,
        present: Sequence[Span] = (),
    ) -> None:
        self._request = request
        self._context = context
        self._part = part
        self._total = total
        self._hash = OrderedHash(
            Hasher.for_promise(replace(request.file.promise, size=total)),
            part.descriptor,
            context.memory,
            context.threads,
            part.hashed if request.file.promise.digest is None else None,
        )
        self._present = SpanSet(present)
        self._present_bytes = self._present.size
        self._resumed_to = self._present.end_of_run(0)
        self._unsynced = SpanSet()
        self._unsynced_bytes = 0
        self._sync_due = asyncio.Event()
        self._hash.written_to(self._resumed_to)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Hash and sync in the background; to be left only after ``finish``, or by an error."""
        try:
            async with asyncio.TaskGroup() as group:
                self._hashing = group.create_task(self._hash.run())
                self._syncing = group.create_task(self._keep_synced())
                yield
        finally:
            self._hash.close()

    async def put(self, offset: int, chunks: Sequence[bytes]) -> Span:
        """Write ``chunks`` at ``offset`` (bytes); returns the range that they fill."""
        span = Span(offset, offset + sum(map(len, chunks)))
        await self._context.bandwidth.take(span.size, self._request.claimant)
        await self._context.threads.run(self._part.write, offset, chunks)
        self._context.space.written(self._request.file.key, span.size)
        self._present.add(span)
        self._present_bytes += span.size
        self._unsynced.add(span)
        self._unsynced_bytes += span.size
        if self._unsynced_bytes >= SYNC_BYTES:
            self._sync_due.set()
        self._hash.keep(offset, chunks)
        self._hash.written_to(self._present.end_of_run(self._hash.position))
        self._request.report(self._present_bytes, self._total)
        # Until the bytes of an earlier run are read again the hash is far behind by nature, which
        # is no reason to hold up the network.
        if self._hash.position >= self._resumed_to:
            await self._hash.wait_near(MAX_LAG_BYTES)
        return span

    async def finish(self) -> Digests:
        """Sync all bytes to the disk, once all are written, and return their digests.

        Without a journal that would say that they are down, the sync that seals the file is enough.
        """
        self._hash.complete()
        self._syncing.cancel()
        if self._part.has_journal:
            await self._sync()
        return await self._hashing

    async def _keep_synced(self) -> None:
        while True:
            await self._sync_due.wait()
            self._sync_due.clear()
            await self._sync()

    async def _sync(self) -> None:
        spans, self._unsynced = self._unsynced, SpanSet()
        self._unsynced_bytes = 0
        await self._context.syncing.run(self._part.sync, tuple(spans))
