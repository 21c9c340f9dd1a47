"""The answer to one request for a range: its head is judged, its body is read block by block."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp

from craftcache.amounts import counted
from craftcache.origins.etags import strong_etag
from craftcache.sources import shown_url

from .faults import Fault, Trouble

if TYPE_CHECKING:
    from .limits import Bandwidth, Claimant
    from .spans import Span

__all__ = ["BLOCK_BYTES", "GATHERED_BYTES", "Patience", "RangeReply"]

BLOCK_BYTES = 1024 * 1024
"""Bytes gathered before they are written in one step, at most."""

GATHERED_BYTES = 16 * 1024 * 1024
"""Bytes that all connections together may gather: the more of them, the smaller their blocks."""

BLOCK_SECONDS = 1.0
"""Time after which what came on a slow line is written without waiting for more."""


class RangeReply:
    """An answer whose status and headers are checked; its body is read block by block.

    Attributes:
        url: The origin's address for what was sent, after all redirects; a mirror may have sent it.
        span: The bytes that the body holds, or None where the whole file comes without a length.
        total: The size of the whole file, where the server said it.
        etag: The strong validator, unquoted, or None; a mirror's word for it counts for nothing.
        partial: Whether the server answered with a range (206).
        is_xet: Whether the Hub, on the way here, said that it has the file in Xet storage.
        received: Bytes of the body that have come.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        span: Span | None,
        total: int | None,
        patience: Patience,
        claimant: Claimant,
        *,
        url: str,
        is_mirrors: bool,
        block_bytes: int,
        is_xet: bool,
        bandwidth: Bandwidth | None,
    ) -> None:
        self.url = url
        self.span = span
        self.total = total
        self.etag = None if is_mirrors else strong_etag(response.headers.get("ETag"))
        self.partial = response.status == 206
        self.is_xet = is_xet
        self.received = 0
        self._shown = shown_url(str(response.url))
        self._bandwidth = bandwidth
        self._content = response.content
        self._left = None if span is None else span.size
        self._patience = patience
        self._claimant = claimant
        self._block_bytes = block_bytes
        self._fault: Fault | None = None

    @property
    def is_whole_file(self) -> bool:
        """Whether the body holds the whole file, also if it was sent as a range."""
        return not self.partial or (self.span is not None and self.span.size == self.total)

    async def block(self) -> list[bytes]:
        """The next bytes of the body: about one block, or what came in BLOCK_SECONDS.

        Empty at the end. When a fault occurs, the bytes before it; the next call raises it.

        Raises:
            Fault: The connection broke, the body ended early, or too little came for too long.
        """
        chunks: list[bytes] = []
        size = 0
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._patience.left):
                while size < self._block_bytes and loop.time() < began + BLOCK_SECONDS:
                    chunk = await self._read()
                    if not chunk:
                        break
                    chunks.append(chunk)
                    size += len(chunk)
        except TimeoutError:
            self._fault = Fault(Trouble.STALLED, f"{self._shown} stalled")
        except Fault as fault:
            self._fault = fault
        self._patience.spend(loop.time() - began, size)
        if self._fault is not None and not chunks:
            raise self._fault
        if self._bandwidth is not None:
            await self._bandwidth.take(size, self._claimant)
        return chunks

    async def _read(self) -> bytes:
        if self._fault is not None:
            raise self._fault
        try:
            chunk, _ = await self._content.readchunk()
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(self._shown, error) from None
        self._claimant.received += len(chunk)
        self.received += len(chunk)
        if self._left is not None:
            self._left -= len(chunk)
            if self._left < 0:
                raise Fault(Trouble.LOST, f"{self._shown} sent more than it announced")
            if not chunk and self._left:
                raise Fault(
                    Trouble.LOST, f"{self._shown} ended {counted(self._left, 'byte')} early"
                )
        return chunk


class Patience:
    """The time for which an answer may still be too slow; only time spent reading it counts.

    Args:
        seconds: The time at the start.
        minimum_rate: Bytes a second, over that time, that count as progress and restore the time.
    """

    def __init__(self, seconds: float, minimum_rate: int) -> None:
        self._seconds = seconds
        self._enough = seconds * minimum_rate
        self._brought = 0
        self.left = seconds

    def spend(self, seconds: float, brought: int) -> None:
        """Note that reading took ``seconds`` and returned ``brought`` bytes."""
        self.left -= seconds
        self._brought += brought
        if self._brought >= self._enough:
            self._brought = 0
            self.left = self._seconds


def _lost(shown: str, error: Exception) -> Fault:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else None
    return Fault(
        Trouble.LOST, f"the connection to {shown} failed: {reason or type(error).__name__}"
    )
