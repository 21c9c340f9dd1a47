"""Where bytes come from: what the Hub or a URL says of a file before it is fetched."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from craftcache.digests import Promise
from craftcache.errors import Unavailable
from craftcache.network.locations import MAX_REDIRECTS, REDIRECTS, redirect_target
from craftcache.network.token import authorization
from craftcache.origins.etags import strong_etag
from craftcache.origins.hub import HubFile, describe, list_files
from craftcached.fetch import RemoteFile
from craftcached.fetch.faults import Fault
from craftcached.fetch.network import Network
from craftcached.fetch.settings import USER_AGENT
from craftcached.fetch.transfer import location_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craftcache.origins.policy import UrlPolicy
    from craftcache.sources import HubSource, UrlSource

__all__ = ["HubOrigin", "UrlOrigin"]

T = TypeVar("T")

HEAD_SECONDS = 15.0

ASKED_AT_ONCE = 16
"""Threads that wait for the Hub; a silent one keeps each for as long as its timeout."""


class HubOrigin:
    """The Hugging Face Hub, asked through huggingface_hub; close it after its last use.

    Args:
        endpoint: Its address.
        token: Sent to it and nowhere else; None sends none.
        timeout: Seconds that it may take for one answer.
    """

    def __init__(self, *, endpoint: str, token: str | None, timeout: float) -> None:
        self.endpoint = endpoint
        self._token = token
        self._timeout = timeout
        # Not the event loop's: what the disk is asked must never wait for the network.
        self._threads = ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="hub")

    def close(self) -> None:
        """Ask nothing more; whoever still waits is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def describe(
        self, source: HubSource, filenames: Sequence[str], revision: str
    ) -> list[HubFile]:
        """All ``filenames`` at one commit: the first is asked for by ``revision``.

        Raises:
            CraftcacheError: See craftcache.origins.hub.describe.
        """
        first = await self._describe(source, filenames[0], revision)
        rest = await asyncio.gather(
            *(self._describe(source, filename, first.commit) for filename in filenames[1:])
        )
        return [first, *rest]

    async def files(self, source: HubSource) -> tuple[str, ...]:
        """The names of all files that a repository has.

        Raises:
            CraftcacheError: See craftcache.origins.hub.list_files.
        """
        return await self._ask(
            partial(
                list_files,
                source,
                endpoint=self.endpoint,
                token=self._token,
                timeout=self._timeout,
            )
        )

    def remote_file(self, source: HubSource, file: HubFile) -> RemoteFile:
        """The file as the fetch engine takes it."""
        headers = authorization(self._token, source=source.shown)
        return RemoteFile(
            source=source.shown, url=file.url, promise=file.promise, key=file.etag, headers=headers
        )

    def shown(self, source: HubSource, commit: str) -> str:
        """Where the files of a commit come from, as shown to people."""
        return f"{self.endpoint}/{source.repo_id}/resolve/{commit}"

    async def _describe(self, source: HubSource, filename: str, revision: str) -> HubFile:
        return await self._ask(
            partial(
                describe,
                source,
                filename,
                revision=revision,
                endpoint=self.endpoint,
                token=self._token,
                timeout=self._timeout,
            )
        )

    async def _ask(self, ask: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)


class UrlOrigin:
    """Any ``https://`` server.

    Args:
        policy: Which addresses may be asked, redirect targets included.
    """

    def __init__(self, policy: UrlPolicy) -> None:
        self._policy = policy

    def remote_file(self, source: UrlSource, filename: str) -> RemoteFile:
        """The file as the fetch engine takes it; its validator comes with its first bytes.

        Raises:
            PolicyDenied: Its URL may not be asked.
        """
        url = source.file_url(filename)
        self._policy.check_source(url)
        return RemoteFile(
            source=source.shown,
            url=url,
            promise=Promise(digest=source.file_digest(filename)),
            key="url" + hashlib.sha256(url.encode()).hexdigest(),
            public_only=True,
        )

    async def etag(self, source: UrlSource, filename: str) -> str | None:
        """The strong validator that the server gives now, unquoted; None where it gives none.

        Raises:
            PolicyDenied: The URL, or where it redirects to, may not be asked.
            Unavailable: The server does not answer, or leads nowhere.
        """
        target = source.file_url(filename)
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
                    answer = await network.request(
                        "HEAD", target, {}, source=source.shown, public_only=True
                    )
                    answer.release()
                    if answer.status not in REDIRECTS:
                        return strong_etag(answer.headers.get("ETag")) if answer.ok else None
                    target = redirect_target(target, location_of(answer), source=source.shown)
        except Fault as fault:
            raise Unavailable(
                fault.message,
                source=source.shown,
                hint="Check the network, or load what is cached",
            ) from None
        raise Unavailable(
            f"more than {MAX_REDIRECTS} redirects", source=source.shown, hint="Check the URL"
        )
