"""The Hub, and the mirrors that are asked in its place while it does not answer.

What a mirror says of a repository is its word only: nobody else has promised the digests. So it is
asked for what this node does not have yet, and never for what is to replace a published revision.
A mirror can only repeat what it was asked before; so it is asked the same questions after the Hub
has answered them, in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from craftcache.errors import CraftcacheError, Offline, Unavailable
from craftcache.network.token import OWN_PLACE, authorization
from craftcache.origins.hub import HubApi
from craftcache.sources import is_commit
from craftcached.fetch import Mirrors

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from craftcache.origins.hub import HubFile, Listing
    from craftcache.sources import HubSource
    from craftcached.fetch import Mirror

__all__ = ["Hub", "HubSite"]

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("craftcached")

ASKED_AT_ONCE = 16
"""Threads that wait for the Hub; a Hub that does not answer blocks each until its timeout."""

TOLD_AT_ONCE = 4
"""Threads that wait for mirrors, which hold up nobody."""


@dataclass(frozen=True, slots=True)
class HubSite:
    """Where questions about repositories are asked: the Hub itself or a mirror.

    Attributes:
        api: Its address, and how it is asked.
        hub_endpoint: The Hub's address, where files are fetched from.
        threads: Threads that wait for it.
        mirror: The mirror; None for the Hub.
    """

    api: HubApi
    hub_endpoint: str
    threads: ThreadPoolExecutor
    mirror: Mirror | None = None

    async def describe(self, source: HubSource, filename: str, revision: str) -> HubFile:
        """See HubApi.describe; the file's address is the Hub's in any case.

        Raises:
            Unavailable: Also where a mirror names another commit than the one asked for.
        """
        found = await self._ask(self.api.describe, source, filename, revision)
        self._check_commit(source, revision, found.commit)
        return replace(found, url=self.hub_endpoint + found.url.removeprefix(self.api.endpoint))

    async def filenames(self, source: HubSource) -> tuple[str, ...]:
        """See HubApi.filenames."""
        return await self._ask(self.api.filenames, source)

    async def listing(self, source: HubSource, revision: str) -> Listing:
        """See HubApi.listing.

        Raises:
            Unavailable: Also where a mirror lists another commit than the one asked for.
        """
        found = await self._ask(self.api.listing, source, revision)
        self._check_commit(source, revision, found.commit)
        return found

    def _check_commit(self, source: HubSource, revision: str, commit: str) -> None:
        if is_commit(revision) and commit != revision and self.mirror is not None:
            raise Unavailable(
                f"mirror {self.mirror.rule.name} answers for another commit", source=source.shown
            )

    async def _ask(self, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        question = partial(ask, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self.threads, question)


class Hub:
    """The Hugging Face Hub, asked over HTTP on threads of its own; close it after its last use.

    The mutable state: what mirrors are being told, changed on the event loop between awaits.

    Args:
        endpoint: URL of the Hub.
        token: Access token, sent to the Hub and nowhere else; None sends none.
        timeout: Seconds that the Hub may take for one answer.
        mirrors: The node's mirrors; None for none.
        token_place: Where the token belongs, for whoever lacks one.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        token: str | None,
        timeout: float,
        mirrors: Mirrors | None = None,
        token_place: str = OWN_PLACE,
    ) -> None:
        self.endpoint = endpoint
        self._api = HubApi(endpoint, token, timeout, token_place=token_place)
        self._mirrors = mirrors or Mirrors()
        # Not the event loop's default threads: disk work on those must not wait for the network.
        self._threads = ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="hub")
        self._mirror_threads = ThreadPoolExecutor(TOLD_AT_ONCE, thread_name_prefix="mirrors")
        self._telling: set[asyncio.Task[None]] = set()
        self._site = HubSite(self._api, endpoint, self._threads)

    def close(self) -> None:
        """Ask the Hub nothing more; requests whose answer has not come are abandoned."""
        for task in self._telling:
            task.cancel()
        for threads in (self._threads, self._mirror_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    def headers(self, source: HubSource) -> dict[str, str]:
        """HTTP headers with the credentials for requests to the Hub's own address.

        Raises:
            AccessDenied: No header can carry the token; see craftcache.network.token.
        """
        return authorization(self._api.token, source=source.shown, place=self._api.token_place)

    async def ask(
        self,
        source: HubSource,
        questions: Callable[[HubSite], Coroutine[object, object, T]],
        *,
        of_mirrors: bool,
    ) -> T:
        """Ask the Hub, or, where it cannot be reached, its mirrors.

        Args:
            source: The repository that is asked about.
            questions: Asks all that belongs together of one site.
            of_mirrors: Whether a mirror's word may be taken.

        Raises:
            CraftcacheError: What the Hub's answer means; a mirror's refusal means nothing.
        """
        try:
            answer = await questions(self._site)
        except Offline:
            raise
        except Unavailable as error:
            if of_mirrors:
                for mirror in self._mirrors.of_hub():
                    with contextlib.suppress(CraftcacheError):
                        answer = await self._ask_mirror(mirror, questions)
                        self._mirrors.believed(mirror, source.shown, error.message)
                        return answer
            raise
        for mirror in self._mirrors.of_hub():
            task = asyncio.create_task(self._tell(mirror, questions))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        return answer

    async def _tell(
        self, mirror: Mirror, questions: Callable[[HubSite], Coroutine[object, object, T]]
    ) -> None:
        """Have a mirror learn what the Hub answers; a repository that is not public it cannot."""
        with contextlib.suppress(CraftcacheError):
            await self._ask_mirror(mirror, questions)

    async def _ask_mirror(
        self, mirror: Mirror, questions: Callable[[HubSite], Coroutine[object, object, T]]
    ) -> T:
        rule = mirror.rule
        token = self._api.token if rule.forward_token else None
        api = replace(self._api, endpoint=rule.url, token=token, ca=rule.ca)
        site = HubSite(api, self.endpoint, self._mirror_threads, mirror)
        began = mirror.circuit.asked()
        try:
            answer = await questions(site)
        except Unavailable as error:
            if error.retryable:
                self._mirrors.failed(mirror, "unavailable", error.message, began)
            else:  # it answers, though not as the Hub does: bytes it may have all the same
                mirror.circuit.left()
            raise
        except BaseException:
            mirror.circuit.left()
            raise
        self._mirrors.succeeded(mirror, began)
        return answer
