"""What the worker socket asks of the rest of the daemon, and the counting of it."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from craftcache.errors import CraftcacheError
from craftcache.wire import Load, Loaded, WarmedBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from craftcache.wire import Progress, Request
    from craftcached.counts import Counts
    from craftcached.job_log import Refusals
    from craftcached.processes import Processes

    from .peers import Peer

__all__ = ["Handler", "CountedHandler"]

AnswerT = TypeVar("AnswerT")

OWN_FAULT = "OwnFault"
"""Label in place of an error's code for an exception outside the tree: a bug of the daemon."""


class Handler(Protocol):
    """Answers what workers ask for.

    Both methods may raise an error of the tree, which becomes the answer; anything else is logged
    and answered as the daemon's own fault. ``peer`` is the process that connected; another may have
    the connection from it since.
    """

    def handle_nowait(self, request: Request[AnswerT], peer: Peer) -> AnswerT | None:
        """The answer if it can be given at once; None if it takes work or waiting."""
        ...

    async def handle(
        self, request: Request[AnswerT], peer: Peer, report: Callable[[Progress], None]
    ) -> AnswerT:
        """Do the work that the answer takes, then return the answer.

        The call is cancelled when its worker disconnects; work that other requests share must
        survive that. ``report`` sends the worker the progress of its request; it is called on the
        event loop, never blocks and may be called as often as is convenient.
        """
        ...


class CountedHandler:
    """A Handler that counts the answers and the errors of another Handler, and who has what.

    Args:
        handler: The Handler that does the work.
        counts: The daemon's counters, which are added to.
        processes: Told which models each process is handed, and which it waits for.
        refusals: Logs the errors.
    """

    def __init__(
        self, handler: Handler, counts: Counts, processes: Processes, refusals: Refusals
    ) -> None:
        self._handler = handler
        self._counts = counts
        self._processes = processes
        self._refusals = refusals

    def handle_nowait(self, request: Request[AnswerT], peer: Peer) -> AnswerT | None:
        """See Handler.handle_nowait."""
        began = time.perf_counter()
        try:  # as _counting_refusals does, at a fraction of what a context manager takes of a hit
            answer = self._handler.handle_nowait(request, peer)
        except Exception as error:
            self._count_refusal(request, peer, error)
            raise
        if isinstance(answer, Loaded):
            self._counts.count_load("hit", time.perf_counter() - began)
            self._count(answer, request, peer)
        return answer

    async def handle(
        self, request: Request[AnswerT], peer: Peer, report: Callable[[Progress], None]
    ) -> AnswerT:
        """See Handler.handle."""
        began = time.perf_counter()
        with self._counting_refusals(request, peer), self._waiting(request, peer):
            answer = await self._handler.handle(request, peer, report)
        if isinstance(request, Load):
            self._counts.count_load("miss", time.perf_counter() - began)
        self._count(answer, request, peer)
        return answer

    def _waiting(
        self, request: Request[object], peer: Peer
    ) -> contextlib.AbstractContextManager[None]:
        if isinstance(request, Load):
            return self._processes.waiting(peer.pid, peer.uid, request.source.shown)
        return contextlib.nullcontext()

    def _count(self, answer: Any, request: Request[object], peer: Peer) -> None:  # noqa: ANN401  # an answer of whatever request
        if isinstance(answer, Loaded):
            self._counts.bytes_served += sum(file.info.size for file in answer.files)
            self._processes.note(peer.pid, peer.uid, answer.source, answer.revision)
        elif isinstance(answer, WarmedBatch):
            for result in answer.results:
                if isinstance(result, CraftcacheError):
                    self._refuse(request, peer, result)

    @contextlib.contextmanager
    def _counting_refusals(self, request: Request[object], peer: Peer) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._count_refusal(request, peer, error)
            raise

    def _count_refusal(self, request: Request[object], peer: Peer, error: Exception) -> None:
        if isinstance(error, CraftcacheError):
            self._refuse(request, peer, error)
        else:
            self._counts.refusals[OWN_FAULT] += 1

    def _refuse(self, request: Request[object], peer: Peer, error: CraftcacheError) -> None:
        self._counts.refusals[error.code] += 1
        self._refusals.log(request.TYPE, error, uid=peer.uid, pid=peer.pid)
