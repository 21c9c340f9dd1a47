"""A URL at any web server as the origin of files, of which the server says little or nothing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

from craftcache.digests import Promise
from craftcache.errors import NotFound, Unavailable
from craftcache.network.locations import MAX_REDIRECTS, REDIRECTS, origin_of, redirect_target
from craftcache.origins.etags import strong_etag
from craftcache.sources import shown_url
from craftcached.fetch import RemoteFile
from craftcached.fetch.faults import Fault
from craftcached.fetch.network import Network
from craftcached.fetch.settings import USER_AGENT
from craftcached.fetch.transfer import location_of

from .description import DescribedFile, Description
from .tasks import all_results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from craftcache.cache.manifest import Manifest
    from craftcache.origins.hub import Listing
    from craftcache.origins.policy import UrlPolicy
    from craftcache.sources import UrlSource

__all__ = ["NoTokens", "UrlOrigin", "UrlTokens"]

HEAD_SECONDS = 15.0
"""Time that a server may take to connect, and to answer a HEAD request."""


class UrlTokens(Protocol):
    """Tokens for the servers of URLs."""

    async def headers(self, url: str, *, source: str) -> dict[str, str]:
        """HTTP headers with the credentials for the server that ``url`` names."""
        ...


class NoTokens:
    """No tokens; a UrlTokens."""

    async def headers(self, url: str, *, source: str) -> dict[str, str]:  # noqa: ARG002
        """None for any server."""
        return {}


class UrlOrigin:
    """A URL at any web server; an Origin.

    Args:
        source: The URL.
        policy: Policy on addresses that may be asked, redirect targets included.
        tokens: Tokens for servers; None for none.
    """

    def __init__(
        self, source: UrlSource, policy: UrlPolicy, tokens: UrlTokens | None = None
    ) -> None:
        self._source = source
        self._policy = policy
        self._tokens = tokens or NoTokens()

    async def describe(
        self,
        filenames: Sequence[str],
        *,
        known: Manifest | None,
        refresh: bool,
        commit: str = "",  # noqa: ARG002  # a URL has none
    ) -> Description:
        """See Origin.describe. The server is asked only about files that are published already.

        What it could say of other files comes with their first bytes.
        """
        others = [record.filename for record in known.files] if known and refresh else []
        names = dict.fromkeys([*filenames, *others])
        described = await all_results(
            self._describe(name, known, refresh=refresh) for name in names
        )
        return Description(self._source, tuple(described))

    async def filenames(self) -> tuple[str, ...]:
        """See Origin.filenames. A web server lists nothing.

        Raises:
            NotFound: Always.
        """
        raise self._unlisted()

    async def listing(self, _revision: str, /) -> Listing:
        """See Origin.listing. A web server lists nothing.

        Raises:
            NotFound: Always.
        """
        raise self._unlisted()

    def _unlisted(self) -> NotFound:
        return NotFound(
            "a URL does not say which files it has",
            source=self._source.shown,
            hint="Name each file that is needed of it",
        )

    def shown(self, _commit: str, /) -> str:
        """See Origin.shown; a URL has no commits."""
        return shown_url(self._source.url)

    async def _describe(
        self, filename: str, known: Manifest | None, *, refresh: bool
    ) -> DescribedFile:
        """Describe one file.

        Raises:
            PolicyDenied: Its URL may not be asked.
        """
        url = self._source.file_url(filename)
        self._policy.check_source(url)
        digest = self._source.file_digest(filename)
        records = known.select(self._source, [filename]) if known else None
        published = record = records[0] if records else None
        if record is not None and refresh:
            if digest is not None and digest.algorithm == "sha256":
                record = None  # the name has the hash: found by content, or fetched, without asking
            elif record.etag is None or record.etag != await self.etag(filename):
                record = None  # changed, or the server does not say
        remote = RemoteFile(
            source=self._source.shown,
            url=url,
            promise=Promise(digest=digest),
            key="url" + hashlib.sha256(url.encode()).hexdigest(),
            headers=await self._tokens.headers(url, source=self._source.shown),
            public_only=True,
        )
        return DescribedFile(filename, remote, current=record, is_unseen=published is None)

    async def etag(self, filename: str) -> str | None:
        """The strong ETag that the server gives now, unquoted; None where it gives none.

        Raises:
            CraftcacheError: As for _header.
        """
        return strong_etag(await self._header(filename, "ETag"))

    async def size(self, filename: str) -> int | None:
        """The length that the server gives now, in bytes; None where it gives none.

        Raises:
            CraftcacheError: As for _header.
        """
        length = await self._header(filename, "Content-Length") or ""
        return int(length) if length.isascii() and length.isdecimal() else None

    async def _header(self, filename: str, name: str) -> str | None:
        """A header of the server's answer to a HEAD request; None where it has none.

        Raises:
            PolicyDenied: The target of a redirect may not be asked.
            Unavailable: The server does not answer, or redirects too often.
        """
        target, shown = self._source.file_url(filename), self._source.shown
        asked = origin_of(target)
        headers = await self._tokens.headers(target, source=shown)
        network = Network(
            user_agent=USER_AGENT,
            connect_seconds=HEAD_SECONDS,
            answer_seconds=HEAD_SECONDS,
            may_be_private=self._policy.may_be_private,
        )
        try:
            async with network:
                for _ in range(MAX_REDIRECTS):
                    self._policy.check_url(target)
                    # The token is for the server that the user's URL names, and no other.
                    sent = headers if origin_of(target) == asked else {}
                    answer = await network.request(
                        "HEAD", target, sent, source=shown, public_only=True
                    )
                    answer.release()
                    if answer.status not in REDIRECTS:
                        return answer.headers.get(name) if answer.ok else None
                    target = redirect_target(target, location_of(answer), source=shown)
        except Fault as fault:
            raise Unavailable(
                fault.message,
                source=shown,
                hint="Check the network, or load what is cached",
            ) from None
        raise Unavailable(
            f"more than {MAX_REDIRECTS} redirects",
            source=shown,
            hint="Check the URL",
        )
