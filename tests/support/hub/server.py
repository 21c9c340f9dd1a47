"""The test hub: a Hugging Face Hub and its CDN on two loopback ports, with faults on demand.

Answers as the real one does, as far as huggingface_hub and a fetching daemon can see: metadata
headers, redirects of LFS files to signed URLs on another origin, error codes, gated and private
repositories, renamed ones. The CDN also serves plain files. Run it on the test's own loop::

    async with TestHub(host) as hub:
        repo = hub.repo("org/model")
        commit = repo.commit({"state_dict.bin": b"..."})
        hub.inject(ResetConnection(after=100), path="*/state_dict.bin", origin="cdn")

or, for synchronous tests and child processes, in a thread: ``with hub_in_thread() as hub``.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Self, TypeAlias
from urllib.parse import quote, unquote

from aiohttp import web

from .answers import answer
from .content import Content, Data
from .faults import Delivery, ExpiredSignature, Fault
from .frontend import Frontend
from .gates import PATIENCE_S
from .records import Journal, Origin, Predicate, Request, matching
from .repos import Repo

if TYPE_CHECKING:
    from types import TracebackType

_Deliver: TypeAlias = Callable[[web.Request], Awaitable[Delivery]]

__all__ = ["TestHub", "Hosted", "Rule", "hub_in_thread"]

CLOSING_S = 0.05
"""Seconds that an answer in flight has when the hub closes."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """A plain file of the CDN that is not served as CDNs usually do.

    Attributes:
        content: Its bytes.
        etag: Unquoted; None for a server that gives none.
        ranges: Whether ranges are served.
    """

    content: Content
    etag: str | None = None
    ranges: bool = True


@dataclass(slots=True)
class Rule:
    """Faults and the requests that they meet.

    Attributes:
        faults: All put into one answer.
        when: Which requests.
        left: How many answers more; None for all.
        used: How many so far.
    """

    faults: tuple[Fault, ...]
    when: Predicate
    left: int | None
    used: int = 0

    def cancel(self) -> None:
        """Spoil no more answers."""
        self.left = 0


class TestHub:
    """The hub and its CDN; see the module.

    Args:
        host: The address that it listens on.

    Attributes:
        host: The same.
        files: The CDN's plain files by path (which starts with a slash).
    """

    __test__: ClassVar[bool] = False  # the name is no test's

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.files: dict[str, Content | Hosted] = {}
        self._journal = Journal()
        self._rules: list[Rule] = []
        self._rules_lock = threading.Lock()
        self._signed: dict[str, Content] = {}
        self._epoch = 0
        self._frontend = Frontend(self._sign)
        self._runners: dict[Origin, web.AppRunner] = {}
        self._ports: dict[Origin, int] = {}

    async def __aenter__(self) -> Self:
        await self._listen("hub", self._frontend.deliver)
        await self._listen("cdn", self._cdn_delivery)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for runner in self._runners.values():
            await runner.cleanup()

    # -- what there is -------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """The Hub's address, as HF_ENDPOINT wants it."""
        return f"http://{self.host}:{self._ports['hub']}"

    @property
    def cdn(self) -> str:
        """The CDN's address: another origin than the Hub's."""
        return f"http://{self.host}:{self._ports['cdn']}"

    def cdn_url(self, path: str) -> str:
        """The URL of a plain file in ``files``."""
        return self.cdn + quote(path)

    def resolve_url(self, repo_id: str, filename: str, revision: str = "main") -> str:
        """Where the library asks for a file of a repository."""
        return f"{self.endpoint}/{repo_id}/resolve/{quote(revision, safe='')}/{quote(filename)}"

    def repo(self, repo_id: str, *, private: bool = False, gated: bool = False) -> Repo:
        """Make a repository, without any commit."""
        return self._frontend.add(Repo(repo_id, private=private, gated=gated))

    def rename(self, old: str, new: str) -> None:
        """Answer requests for ``old`` by a 307 to ``new``, as for ``t5-base``."""
        self._frontend.renamed[old] = new

    def grant(self, token: str, *repo_ids: str) -> None:
        """Make ``token`` a known one and let it read these gated or private repositories."""
        self._frontend.grants.setdefault(token, set()).update(repo_ids)

    # -- faults --------------------------------------------------------------------------------

    def inject(
        self,
        *faults: Fault,
        path: str = "*",
        method: str | None = "GET",
        origin: Origin | None = None,
        when: Predicate | None = None,
        times: int | None = 1,
    ) -> Rule:
        """Put all of ``faults`` into the answers to matching requests.

        Rules queue: of those that match a request the oldest that is not used up has it alone.

        Args:
            faults: Combined in this order.
            path: Percent-decoded, or a glob whose ``*`` crosses slashes.
            method: None for all.
            origin: None for both.
            when: A further condition.
            times: How many answers; None for all from now on.
        """
        matches = matching(path, method=method, origin=origin)

        def both(request: Request) -> bool:
            return matches(request) and (when is None or when(request))

        rule = Rule(faults, both, times)
        with self._rules_lock:
            self._rules.append(rule)
        return rule

    def expire_signatures(self) -> None:
        """Refuse all signed URLs given out so far; new redirects carry good ones."""
        self._epoch += 1

    # -- what happened -------------------------------------------------------------------------

    @property
    def requests(self) -> list[Request]:
        """All requests so far, by arrival."""
        return self._journal.requests

    def matching(
        self, path: str = "*", *, method: str | None = None, origin: Origin | None = None
    ) -> list[Request]:
        """Those requests whose path is ``path`` or matches it as a glob."""
        return list(filter(matching(path, method=method, origin=origin), self.requests))

    def count(self, method: str | None, path: str = "*", *, origin: Origin | None = None) -> int:
        """How many such requests there were."""
        return len(self.matching(path, method=method, origin=origin))

    def bytes_sent(self, path: str = "*", *, origin: Origin | None = None) -> int:
        """How many bytes of bodies went out for such requests."""
        return sum(request.bytes_sent for request in self.matching(path, origin=origin))

    def in_flight(self, path: str = "*", *, origin: Origin | None = None) -> int:
        """How many such requests have no complete answer yet."""
        return sum(not request.done for request in self.matching(path, origin=origin))

    @property
    def tokens_at_cdn(self) -> list[str]:
        """Every Authorization header that the CDN was sent; there ought to be none."""
        requests = self.matching(origin="cdn")
        return [request.authorization for request in requests if request.authorization is not None]

    async def wait_for_request(
        self, predicate: Predicate, *, count: int = 1, timeout_s: float = PATIENCE_S
    ) -> Request:
        """Wait for the ``count``-th request that fulfils ``predicate``, past ones included.

        Records change while their answers go out, so a predicate may ask for ``bytes_sent``
        or ``done`` as well.

        Raises:
            TimeoutError: There was none; the message lists what there was.
        """
        return await self._journal.wait(predicate, count=count, timeout_s=timeout_s)

    def wait_for_request_blocking(
        self, predicate: Predicate, *, count: int = 1, timeout_s: float = PATIENCE_S
    ) -> Request:
        """``wait_for_request`` for synchronous tests."""
        return self._journal.wait_blocking(predicate, count=count, timeout_s=timeout_s)

    # -- serving -------------------------------------------------------------------------------

    async def _listen(self, origin: Origin, deliver: _Deliver) -> None:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._handle(request, origin, deliver)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=CLOSING_S
        )
        await runner.setup()
        self._runners[origin] = runner
        await web.TCPSite(runner, self.host, 0).start()
        self._ports[origin] = runner.addresses[0][1]

    async def _handle(
        self, request: web.Request, origin: Origin, deliver: _Deliver
    ) -> web.StreamResponse:
        record = self._journal.begin(
            method=request.method,
            origin=origin,
            path=unquote(request.rel_url.raw_path),
            query=dict(request.query),
            headers=request.headers,
        )
        faults = self._faults_for(record)

        def sent(status: int, count: int) -> None:
            self._journal.sent(record.number, status, count)

        try:
            delivery = await deliver(request)
            for fault in faults:
                delivery = fault.spoil(delivery)
            return await answer(request, delivery, sent)
        finally:
            self._journal.end(record.number)

    def _faults_for(self, request: Request) -> tuple[Fault, ...]:
        with self._rules_lock:
            for rule in self._rules:
                if rule.left != 0 and rule.when(request):
                    rule.used += 1
                    if rule.left is not None:
                        rule.left -= 1
                    return rule.faults
        return ()

    async def _cdn_delivery(self, request: web.Request) -> Delivery:
        path = unquote(request.rel_url.raw_path)
        if path in self._signed:
            if request.query.get("sig") != self._signature(path):
                return ExpiredSignature().spoil(Delivery(Data(b"")))
            content = self._signed[path]
            return Delivery(content, etag=f"cdn-{content.sha256[:32]}")
        hosted = self.files.get(path)
        if hosted is None:
            return Delivery(Data(b"no such file"), status=404)
        if isinstance(hosted, Hosted):
            return Delivery(hosted.content, etag=hosted.etag, ranges=hosted.ranges)
        etag = await asyncio.to_thread(lambda: hosted.sha256[:32])
        return Delivery(hosted, etag=etag)

    def _sign(self, repo_id: str, filename: str, content: Content) -> str:
        path = f"/lfs/{repo_id}/{content.sha256}/{filename}"
        self._signed[path] = content
        return f"{self.cdn_url(path)}?sig={self._signature(path)}&key=test"

    def _signature(self, path: str) -> str:
        return hashlib.sha256(f"{self._epoch} {path}".encode()).hexdigest()[:32]


@contextmanager
def hub_in_thread(host: str = "127.0.0.1") -> Iterator[TestHub]:
    """A hub on a loop of its own in another thread; all of its synchronous methods work here."""
    started: Future[tuple[TestHub, Callable[[], object]]] = Future()

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        async with TestHub(host) as hub:
            started.set_result((hub, partial(loop.call_soon_threadsafe, stop.set)))
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, name="test-hub")
    thread.start()
    try:
        hub, stop = started.result(PATIENCE_S)
        try:
            yield hub
        finally:
            stop()
    finally:
        thread.join()
