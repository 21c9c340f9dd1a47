"""One HTTP request for one range of a file, and its answer, held to what HTTP promises.

All of aiohttp's errors stop here: callers see a :class:`Fault` that a further request may mend,
or an error of :mod:`craftcache.errors` that none can. Redirects are followed by hand, because
each hop is checked against the node's policy and the credentials of a file go to the origin
(scheme, host and port) of its own URL and to no other.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from craftcache.errors import AccessDenied, NotFound, Unavailable
from craftcache.network.content_encoding import check_uncompressed
from craftcache.network.locations import MAX_REDIRECTS, REDIRECTS, origin_of, redirect_target
from craftcache.origins.etags import strong_etag
from craftcache.origins.hub import invalid_token
from craftcache.sources import shown_url

from .faults import Fault, Trouble
from .retry import requested_wait
from .spans import Span

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from .limits import Claimant
    from .network import Network
    from .settings import EngineSettings
    from .types import RemoteFile

__all__ = ["host_of", "location_of", "RangeReply", "Transfer"]

BLOCK_BYTES = 1024 * 1024
"""Bytes gathered before they are written in one step, at most."""

GATHERED_BYTES = 16 * 1024 * 1024
"""Bytes that all connections together may gather: the more of them, the smaller their blocks."""

BLOCK_SECONDS = 1.0
"""Time after which what came on a slow line is written without waiting for more."""

_BUSY = frozenset({408, 425, 429})
_ABSENT_CODES = frozenset({"RepoNotFound", "RevisionNotFound", "EntryNotFound"})
"""The Hub's X-Error-Code for what does not exist; it says so with status 401 as well."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def host_of(url: str) -> str:
    """The host and port that a request to ``url`` goes to first."""
    return URL(url, encoded=True).authority


class RangeReply:
    """An answer whose status and headers are checked; its body is read block by block.

    Attributes:
        url: The address that answered, after all redirects.
        span: The bytes that the body holds, or None where the whole file comes without a length.
        total: The size of the whole file, where the server said it.
        etag: The strong validator, unquoted, or None.
        partial: Whether the server answered with a range (206).
        is_xet: Whether the Hub, on the way here, said that it has the file in Xet storage.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        span: Span | None,
        total: int | None,
        patience: Patience,
        claimant: Claimant,
        *,
        block_bytes: int,
        is_xet: bool,
    ) -> None:
        self.url = str(response.url)
        self.span = span
        self.total = total
        self.etag = strong_etag(response.headers.get("ETag"))
        self.partial = response.status == 206
        self.is_xet = is_xet
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
            self._fault = Fault(Trouble.STALLED, f"{shown_url(self.url)} stalled")
        except Fault as fault:
            self._fault = fault
        self._patience.spend(loop.time() - began, size)
        if self._fault is not None and not chunks:
            raise self._fault
        return chunks

    async def _read(self) -> bytes:
        if self._fault is not None:
            raise self._fault
        try:
            chunk, _ = await self._content.readchunk()
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(self.url, error) from None
        self._claimant.received += len(chunk)
        if self._left is not None:
            self._left -= len(chunk)
            if self._left < 0:
                raise Fault(Trouble.LOST, f"{shown_url(self.url)} sent more than it announced")
            if not chunk and self._left:
                raise Fault(Trouble.LOST, f"{shown_url(self.url)} ended {self._left} bytes early")
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


class Transfer:
    """Makes requests for files, each hop checked by ``check_url``."""

    def __init__(
        self,
        network: Network,
        settings: EngineSettings,
        check_url: Callable[[str], None],
    ) -> None:
        self._network = network
        self._settings = settings
        self._check_url = check_url
        self._block_bytes = min(BLOCK_BYTES, GATHERED_BYTES // settings.max_connections)

    @asynccontextmanager
    async def open(
        self,
        file: RemoteFile,
        *,
        url: str,
        span: Span | None,
        etag: str | None,
        claimant: Claimant,
    ) -> AsyncIterator[RangeReply]:
        """Ask for ``span`` of ``file``, or for all of it, and hold the answer open.

        Args:
            file: The file to ask for.
            url: Address to ask: ``file.url``, or the one it redirected to before.
            span: Range to ask for; None asks for the whole file without a Range header.
            etag: The version that earlier bytes belong to, for If-Range.
            claimant: The download that the bytes are counted for.

        Raises:
            Fault: The request failed; a further one may succeed.
            NotFound, AccessDenied, PolicyDenied, IntegrityError, Unavailable: None can.
        """
        headers = {"Cache-Control": "no-cache"} if file.attempt > 1 else {}
        if span is not None:
            headers["Range"] = f"bytes={span.start}-{span.stop - 1}"
            if etag is not None:
                headers["If-Range"] = f'"{etag}"'
        response, is_xet = await self._follow(file, url, headers)
        try:
            covered, total = self._judge(file, response, span)
            yield RangeReply(
                response,
                covered,
                total,
                Patience(self._settings.stall_seconds, self._settings.minimum_rate),
                claimant,
                block_bytes=self._block_bytes,
                is_xet=is_xet,
            )
        finally:
            response.close()  # keeps the connection where the body was read to its end

    async def _follow(
        self, file: RemoteFile, url: str, headers: Mapping[str, str]
    ) -> tuple[aiohttp.ClientResponse, bool]:
        """The answer after all redirects, and whether one of the answers had a Xet header."""
        is_xet = False
        home, target = origin_of(file.url), url
        for _ in range(MAX_REDIRECTS + 1):
            self._check_url(target)
            credentials = file.headers if origin_of(target) == home else {}
            response = await self._network.request(
                "GET",
                target,
                {**headers, **credentials},
                source=file.source,
                public_only=file.public_only,
            )
            is_xet |= "X-Xet-Hash" in response.headers
            if response.status not in REDIRECTS:
                return response, is_xet
            response.release()
            target = redirect_target(target, location_of(response), source=file.source)
        raise _refused(
            file.source, f"{shown_url(file.url)} redirects more than {MAX_REDIRECTS} times"
        )

    def _judge(
        self, file: RemoteFile, response: aiohttp.ClientResponse, span: Span | None
    ) -> tuple[Span | None, int | None]:
        """The span that a good answer's body holds and the file's size, as far as it says."""
        status = response.status
        if status < 300:
            encodings = response.headers.getall("Content-Encoding", ())
            check_uncompressed(encodings, url=str(response.url), source=file.source)
        if status == 200:
            size = response.content_length
            return None if size is None else Span(0, size), size
        if status == 206 and span is not None:
            got, total = _content_range(response)
            if got.start != span.start or got.stop > span.stop:
                raise Fault(
                    Trouble.UNSPLITTABLE,
                    f"{shown_url(str(response.url))} answers with another range",
                )
            return got, total
        raise self._refusal(file, response)

    def _refusal(self, file: RemoteFile, response: aiohttp.ClientResponse) -> Exception:
        status = response.status
        shown = shown_url(str(response.url))
        at_home = origin_of(str(response.url)) == origin_of(file.url)
        if status in {404, 410} or response.headers.get("X-Error-Code") in _ABSENT_CODES:
            return NotFound(
                f"{shown} does not exist ({status})",
                source=file.source,
                hint="Check the name; a private repository looks the same without a token",
            )
        if status in {400, 401, 403} and not at_home:
            return Fault(Trouble.EXPIRED, f"{shown} no longer honours its signature ({status})")
        if status == 401 and file.headers:
            return invalid_token(shown, source=file.source)
        if status in {401, 403}:
            return AccessDenied(
                f"{shown} refuses access ({status})",
                source=file.source,
                hint="Accept the repository's terms, and give the daemon a token that may read it",
            )
        if status in _BUSY or status >= 500:
            return Fault(
                Trouble.BUSY, f"{shown} answered {status}", requested_wait(response.headers)
            )
        if status == 416:
            return Fault(Trouble.CHANGED, f"{shown} is shorter than it was")
        return _refused(file.source, f"{shown} answered {status}")


def _content_range(response: aiohttp.ClientResponse) -> tuple[Span, int | None]:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        raise Fault(
            Trouble.UNSPLITTABLE,
            f"{shown_url(str(response.url))} does not say which range it sends",
        )
    total = None if match[3] == "*" else int(match[3])
    return Span(int(match[1]), int(match[2]) + 1), total


def location_of(response: aiohttp.ClientResponse) -> bytes | None:
    """The Location of an answer as it was sent."""
    return next((v for n, v in response.raw_headers if n.lower() == b"location"), None)


def _lost(url: str, error: Exception) -> Fault:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else None
    return Fault(
        Trouble.LOST, f"the connection to {shown_url(url)} failed: {reason or type(error).__name__}"
    )


def _refused(source: str, message: str) -> Unavailable:
    return Unavailable(
        message, source=source, hint="Check the URL with the publisher", retryable=False
    )
