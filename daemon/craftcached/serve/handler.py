"""What the worker socket asks of the rest of the daemon, and the counting of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from craftcache.errors import CraftcacheError
from craftcache.wire import Load, Loaded, WarmedBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from craftcache.wire import Progress, Request
    from craftcached.counts import Counts

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
    """A Handler that counts the answers and the errors of another Handler.

    Args:
        handler: The Handler that does the work.
        counts: The daemon's counters, which are added to.
    """

    def __init__(self, handler: Handler, counts: Counts) -> None:
        self._handler = handler
        self._counts = counts

    def handle_nowait(self, request: Request[AnswerT], peer: Peer) -> AnswerT | None:
        """See Handler.handle_nowait."""
        with self._counting_refusals():
            answer = self._handler.handle_nowait(request, peer)
        if isinstance(answer, Loaded):
            self._counts.hits += 1
            self._count(answer)
        return answer

    async def handle(
        self, request: Request[AnswerT], peer: Peer, report: Callable[[Progress], None]
    ) -> AnswerT:
        """See Handler.handle."""
        with self._counting_refusals():
            answer = await self._handler.handle(request, peer, report)
        if isinstance(request, Load):
            self._counts.misses += 1
        self._count(answer)
        return answer

    def _count(self, answer: Any) -> None:  # noqa: ANN401  # an answer of whatever request
        if isinstance(answer, Loaded):
            self._counts.bytes_served += sum(file.info.size for file in answer.files)
        elif isinstance(answer, WarmedBatch):
            for result in answer.results:
                if isinstance(result, CraftcacheError):
                    self._counts.refusals[result.code] += 1

    @contextlib.contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        try:
            yield
        except CraftcacheError as error:
            self._counts.refusals[error.code] += 1
            raise
        except Exception:
            self._counts.refusals[OWN_FAULT] += 1
            raise
