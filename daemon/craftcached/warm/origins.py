"""Origins: what the Hub or a server says of a source's files before they are fetched.

    Origin        the protocol: describe files, list them, say what people are shown
    HubOrigin     a repository at the Hub
    UrlOrigin     a URL at any web server
    Origins       which of them a source has; another kind of origin is added there

An origin opens no ranges itself: each file that it describes carries the address, credentials and
promise with which the fetch engine opens them.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Protocol

from craftcache.digests import Promise
from craftcache.errors import NotFound, Unavailable
from craftcache.network.locations import (
    MAX_REDIRECTS,
    REDIRECTS,
    origin_of,
    redirect_target,
)
from craftcache.origins.etags import strong_etag
from craftcache.sources import HubSource, UrlSource, is_commit, shown_url
from craftcached.fetch import RemoteFile
from craftcached.fetch.faults import Fault
from craftcached.fetch.network import Network
from craftcached.fetch.settings import USER_AGENT
from craftcached.fetch.transfer import location_of

from .description import DescribedFile, Description, HubBlob
from .hub import Hub
from .tasks import all_results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from craftcache.cache.manifest import Manifest
    from craftcache.origins.hub import HubFile, Listing
    from craftcache.origins.policy import UrlPolicy

    from .description import FetchedSource
    from .hub import HubSite

__all__ = ["Origin", "Hub", "HubOrigin", "UrlOrigin", "Origins"]

HEAD_SECONDS = 15.0
"""Time that a server may take to connect, and to answer a HEAD request."""


class Origin(Protocol):
    """The origin of one source."""

    async def describe(
        self,
        filenames: Sequence[str],
        *,
        known: Manifest | None,
        refresh: bool,
        commit: str = "",
    ) -> Description:
        """Describe files of the source, at its newest or at its published revision.

        Args:
            filenames: Names of the files; one at least.
            known: Manifest of the source; None where nothing of it is published.
            refresh: Whether the newest revision is wanted. Then the other files of ``known`` are
                described too, as far as the source still has them: a new revision replaces all
                files of the old one. Otherwise the published revision, where there is one.
            commit: The commit to describe them at instead, as the revision named it before.

        Raises:
            NotFound, AccessDenied, PolicyDenied, Unavailable, Offline: Each names the source.
        """
        ...

    async def filenames(self) -> tuple[str, ...]:
        """The names of all files that the source has at its revision.

        Raises:
            CraftcacheError: As for describe.
        """
        ...

    async def listing(self, revision: str, /) -> Listing:
        """All files of the source at a revision, and which commit that is.

        Raises:
            CraftcacheError: As for describe.
        """
        ...

    def shown(self, commit: str, /) -> str:
        """The address that the files of a commit have in common, as shown to people."""
        ...


class HubOrigin:
    """A repository at the Hub; an Origin.

    Args:
        source: The repository.
        hub: The Hub.
    """

    def __init__(self, source: HubSource, hub: Hub) -> None:
        self._source = source
        self._hub = hub

    async def describe(
        self,
        filenames: Sequence[str],
        *,
        known: Manifest | None,
        refresh: bool,
        commit: str = "",
    ) -> Description:
        """See Origin.describe. Only the first question names the revision, the others its commit.

        So all files are of one commit, even if the revision moves between two answers. What is
        published is replaced on the Hub's own word only, not on a mirror's.
        """

        async def questions(site: HubSite) -> Description:
            return await self._describe_at(site, filenames, known, refresh=refresh, commit=commit)

        return await self._hub.ask(self._source, questions, of_mirrors=known is None or not refresh)

    async def _describe_at(
        self,
        site: HubSite,
        filenames: Sequence[str],
        known: Manifest | None,
        *,
        refresh: bool,
        commit: str,
    ) -> Description:
        source = self._source
        revision = commit or (source.revision if refresh or known is None else known.revision)
        first = await site.describe(source, filenames[0], revision)
        # A mirror is asked for a file by its commit, so it must know the file under that as well.
        if site.mirror is not None and first.commit != revision:
            first = await site.describe(source, filenames[0], first.commit)
        rest = await all_results(
            site.describe(source, name, first.commit) for name in filenames[1:]
        )
        found = [first, *rest]
        if known is not None and refresh:
            found += await self._describe_others(site, known, filenames, first.commit)
        is_mirrors = site.mirror is not None
        return Description(
            source,
            tuple(self._described(file, known, is_mirrors=is_mirrors) for file in found),
            first.commit,
            # If not asked for just now, the revision may have moved on since the commit was known.
            is_named=revision == source.revision,
            mirror=self._shown_at(site.endpoint, first.commit) if is_mirrors else "",
        )

    async def filenames(self) -> tuple[str, ...]:
        """See Origin.filenames."""
        source = self._source
        return await self._hub.ask(source, lambda site: site.filenames(source), of_mirrors=True)

    async def listing(self, revision: str, /) -> Listing:
        """See Origin.listing."""
        source = self._source
        # A commit's files are the same wherever they are listed; what a name means the Hub says.
        return await self._hub.ask(
            source, lambda site: site.listing(source, revision), of_mirrors=is_commit(revision)
        )

    def shown(self, commit: str) -> str:
        """See Origin.shown."""
        return self._shown_at(self._hub.endpoint, commit)

    def _shown_at(self, endpoint: str, commit: str) -> str:
        return f"{endpoint}/{self._source.repo_id}/resolve/{commit}"

    async def _describe_others(
        self, site: HubSite, known: Manifest, filenames: Sequence[str], commit: str
    ) -> list[HubFile]:
        """The published files that are not asked for now, if the new commit still has them."""
        found = []
        for record in known.files:
            if record.filename not in filenames:
                with contextlib.suppress(NotFound):
                    found.append(await site.describe(self._source, record.filename, commit))
        return found

    def _described(
        self, file: HubFile, known: Manifest | None, *, is_mirrors: bool
    ) -> DescribedFile:
        record = known.file(file.filename) if known else None
        remote = RemoteFile(
            source=self._source.shown,
            url=file.url,
            promise=file.promise,
            key=file.etag,
            headers=self._hub.headers(self._source),
            is_origin_away=is_mirrors,
        )
        return DescribedFile(
            file.filename,
            remote,
            HubBlob(self._source, file.etag),
            record if record and record.etag == file.etag else None,
        )


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


class Origins:
    """The origin of each source: the one place that knows how many kinds there are.

    Args:
        hub: The Hub.
        policy: Policy on addresses of other servers that may be asked.
        tokens: Tokens for other servers; None for none.
    """

    def __init__(self, hub: Hub, policy: UrlPolicy, tokens: UrlTokens | None = None) -> None:
        self._hub = hub
        self._policy = policy
        self._tokens = tokens or NoTokens()

    async def size(self, source: UrlSource, filename: str) -> int | None:
        """The size of a URL's file, in bytes; see UrlOrigin.size."""
        return await UrlOrigin(source, self._policy, self._tokens).size(filename)

    def of(self, source: FetchedSource) -> Origin:
        """The origin of ``source``."""
        match source:
            case HubSource():
                return HubOrigin(source, self._hub)
            case UrlSource():
                return UrlOrigin(source, self._policy, self._tokens)
