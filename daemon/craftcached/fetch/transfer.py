"""One HTTP request for one range of a file, and its answer, held to what HTTP promises.

All of aiohttp's errors stop here: callers see a :class:`Fault` that a further request may mend,
or an error of :mod:`craftcache.errors` that none can. Redirects are followed by hand, because
each hop is checked against the node's policy and the credentials of a file go to the origin
(scheme, host and port) of its own URL and to no other.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from craftcache.errors import AccessDenied, CraftcacheError, NotFound, Unavailable
from craftcache.network.content_encoding import check_uncompressed
from craftcache.network.locations import MAX_REDIRECTS, REDIRECTS, origin_of, redirect_target
from craftcache.origins.hub import invalid_token
from craftcache.sources import shown_url

from .faults import Fault, Trouble
from .reply import BLOCK_BYTES, GATHERED_BYTES, Patience, RangeReply
from .retry import requested_wait
from .spans import Span

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from .limits import Bandwidth, Claimant
    from .mirrors import MirrorSite, Route
    from .network import Network
    from .settings import EngineSettings
    from .types import RemoteFile

__all__ = ["host_of", "location_of", "Transfer"]

_BUSY = frozenset({408, 425, 429})
_ABSENT_CODES = frozenset({"RepoNotFound", "RevisionNotFound", "EntryNotFound"})
"""The Hub's X-Error-Code for what does not exist; it says so with status 401 as well."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def host_of(url: str) -> str:
    """The host and port that a request to ``url`` goes to first, without user and password."""
    return URL(url, encoded=True).with_user(None).authority


@dataclass(frozen=True, slots=True)
class _Hop:
    """Where the origin leads: to an answer of its own, or to an address that a mirror stands for.

    Attributes:
        url: The origin's address.
        is_xet: Whether one of the answers on the way had a Xet header.
        response: The origin's answer, open; None where a mirror is to be asked.
        site: That mirror.
    """

    url: str
    is_xet: bool
    response: aiohttp.ClientResponse | None
    site: MirrorSite | None = None


class Transfer:
    """Makes requests for files, each hop checked by ``check_url``.

    Args:
        network: Makes each request.
        settings: Limits and patience.
        check_url: Raises PolicyDenied for an address that must not be asked.
        uplink: The limit on the bytes of files that should come from a mirror and do not.
    """

    def __init__(
        self,
        network: Network,
        settings: EngineSettings,
        check_url: Callable[[str], None],
        uplink: Bandwidth | None = None,
    ) -> None:
        self._network = network
        self._settings = settings
        self._check_url = check_url
        self._uplink = uplink
        self._block_bytes = min(BLOCK_BYTES, GATHERED_BYTES // settings.max_connections)

    @asynccontextmanager
    async def open(
        self,
        file: RemoteFile,
        route: Route,
        *,
        url: str,
        span: Span | None,
        etag: str | None,
        claimant: Claimant,
    ) -> AsyncIterator[RangeReply]:
        """Ask for ``span`` of ``file``, or for all of it, and hold the answer open.

        Args:
            file: The file to ask for.
            route: Which mirrors are asked before the origin.
            url: Address to ask: ``file.url``, or the one it redirected to before.
            span: Range to ask for; None asks for the whole file without a Range header.
            etag: The version that earlier bytes belong to, for If-Range.
            claimant: The download that the bytes are counted for.

        Raises:
            Fault: The request failed; a further one may succeed.
            NotFound, AccessDenied, PolicyDenied, IntegrityError, Unavailable: None can.
        """
        with route.asking(None):
            hop = await self._follow(file, route, url, span, etag)
        with route.asking(hop.site) as answered:
            response = hop.response or await self._ask_mirror(file, route, hop.site, span)
            try:
                reply = self._reply(file, route, hop, response, span, claimant)
                answered()
                try:
                    yield reply
                finally:
                    start = 0 if reply.span is None else reply.span.start
                    route.came(hop.site, Span(start, start + reply.received))
            finally:
                response.close()  # keeps the connection where the body was read to its end

    async def digest(
        self, file: RemoteFile, route: Route, site: MirrorSite, span: Span, *, renewed: bool = False
    ) -> bytes:
        """The sha256 of what a mirror sends of ``span`` at ``file``'s attempt.

        Args:
            file: The file, at the attempt that is asked about.
            route: The way of a download of it.
            site: The mirror.
            span: The range.
            renewed: Whether the mirror is to fetch it anew.

        Raises:
            Fault: It sends nothing of the kind.
        """
        response = await self._ask_mirror(file, route, site, span, renewed=renewed)
        digest = hashlib.sha256()
        try:
            with _without_last_word():
                self._judge(file, response, span)
            async with asyncio.timeout(site.mirror.rule.patience):
                while chunk := await response.content.readany():
                    digest.update(chunk)
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError among them
            raise Fault(Trouble.LOST, type(error).__name__) from None
        finally:
            response.close()
        return digest.digest()

    async def _follow(
        self, file: RemoteFile, route: Route, url: str, span: Span | None, etag: str | None
    ) -> _Hop:
        """The origin's answer after all redirects, or the first address that a mirror has."""
        headers = _range_header(span)
        if file.attempt > 1:
            headers["Cache-Control"] = "no-cache"
        if span is not None and etag is not None:
            headers["If-Range"] = f'"{etag}"'
        is_xet = False
        home, target = origin_of(file.url), url
        for _ in range(MAX_REDIRECTS + 1):
            self._check_url(target)
            if site := await route.choose(target, span.start if span else 0):
                return _Hop(target, is_xet, None, site)
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
                return _Hop(str(response.url), is_xet, response)
            response.release()
            target = redirect_target(target, location_of(response), source=file.source)
        raise _refused(
            file.source, f"{shown_url(file.url)} redirects more than {MAX_REDIRECTS} times"
        )

    async def _ask_mirror(
        self,
        file: RemoteFile,
        route: Route,
        site: MirrorSite | None,
        span: Span | None,
        *,
        renewed: bool = False,
    ) -> aiohttp.ClientResponse:
        """Ask a mirror. Its validators count for nothing, so that it is sent none."""
        assert site is not None  # noqa: S101  # a hop has the one or the other
        rule = site.mirror.rule
        headers = {**_range_header(span), **route.headers(site, file.attempt)}
        if renewed:
            headers["Cache-Control"] = "no-cache"
        with _without_last_word():
            return await self._network.request(
                "GET",
                site.url,
                headers,
                source=file.source,
                public_only=False,
                ca=rule.ca,
                answer_seconds=rule.patience,
            )

    def _reply(
        self,
        file: RemoteFile,
        route: Route,
        hop: _Hop,
        response: aiohttp.ClientResponse,
        span: Span | None,
        claimant: Claimant,
    ) -> RangeReply:
        with _without_last_word() if hop.site else nullcontext():
            covered, total = self._judge(file, response, span)
        patience = hop.site.mirror.rule.patience if hop.site else self._settings.stall_seconds
        return RangeReply(
            response,
            covered,
            total,
            Patience(patience, self._settings.minimum_rate),
            claimant,
            url=hop.url,
            is_mirrors=hop.site is not None,
            block_bytes=self._block_bytes,
            is_xet=hop.is_xet,
            bandwidth=self._uplink if hop.site is None and route.has_mirrors else None,
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
            return invalid_token(shown, source=file.source, place=self._settings.token_place)
        if status in {401, 403}:
            return AccessDenied(
                f"{shown} refuses access ({status})",
                source=file.source,
                hint="Accept the repository's terms, and put a token that may read it into "
                f"{self._settings.token_place}; for other hosts than the Hub into tokens_dir",
            )
        if status in _BUSY or status >= 500:
            return Fault(
                Trouble.BUSY, f"{shown} answered {status}", requested_wait(response.headers)
            )
        if status == 416:
            return Fault(Trouble.CHANGED, f"{shown} is shorter than it was")
        return _refused(file.source, f"{shown} answered {status}")


@contextmanager
def _without_last_word() -> Iterator[None]:
    """A context in which an error that a mirror answered with is a Fault ELSEWHERE.

    The error is final only if the origin answers with it, so another site is asked.
    """
    try:
        yield
    except CraftcacheError as error:
        raise Fault(Trouble.ELSEWHERE, error.message) from None


def _range_header(span: Span | None) -> dict[str, str]:
    return {} if span is None else {"Range": f"bytes={span.start}-{span.stop - 1}"}


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


def _refused(source: str, message: str) -> Unavailable:
    return Unavailable(
        message, source=source, hint="Check the URL with the publisher", retryable=False
    )
