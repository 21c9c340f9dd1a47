"""Origins: what the Hub or a server says of a source's files before they are fetched.

    Origin                  the protocol: describe files, list them, say what people are shown
    hub_origin.HubOrigin    a repository at the Hub
    url_origin.UrlOrigin    a URL at any web server
    Origins                 which of them a source has; another kind of origin is added there

An origin opens no ranges itself: each file that it describes carries the address, credentials and
promise with which the fetch engine opens them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from craftcache.sources import HubSource, UrlSource

from .hub_origin import HubOrigin
from .url_origin import NoTokens, UrlOrigin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from craftcache.cache.manifest import Manifest
    from craftcache.origins.hub import Listing
    from craftcache.origins.policy import UrlPolicy

    from .description import Description, FetchedSource
    from .hub import Hub
    from .url_origin import UrlTokens

__all__ = ["Origin", "Origins"]


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
