"""The worker socket: a pool of connections, and the retries of a request."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from craftcache.limits import limit_reached
from craftcache.wire import Problem, ReportedFallback, encode

from .connection import DaemonConnection, Ended
from .failures import Busy, DaemonUnavailable
from .waiting import Call, Cancellation, Deadlines, Restarts, Silence, Turn, shut

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.wire import FallbackReason, Request

__all__ = ["WorkerSocket"]

MAX_IDLE = 2
"""Idle connections kept at most: an idle process takes little of the daemon's resources, and one
with more threads that ask at once opens more connections, which takes 0.1 ms each."""

AnswerT = TypeVar("AnswerT")


class WorkerSocket:
    """The worker socket at ``path``, for any number of threads.

    Idle connections are kept for the next request. Each request has a connection of its own, so
    threads do not wait for each other. A forked child closes its copies of the connections, which
    the daemon does not notice, and opens its own. Every descriptor is close-on-exec.

    Attributes:
        path: Path of the socket that the daemon listens on.
    """

    def __init__(self, path: str | os.PathLike[str], *, deadlines: Deadlines | None = None) -> None:
        self._begin_empty()
        self.path = os.fspath(path)
        self._deadlines = deadlines or Deadlines()
        _all_sockets.add(self)

    def __del__(self) -> None:
        self.close()

    def _begin_empty(self) -> None:
        # The lock guards the others. Nothing blocks and no other lock is taken while it is held.
        self._lock = threading.Lock()
        self._untold: Counter[tuple[FallbackReason, str]] = Counter()
        self._idle: list[DaemonConnection] = []
        self._connections: set[DaemonConnection] = set()

    def ask(
        self,
        request: Request[AnswerT],
        call: Call | None = None,
        *,
        patience: Callable[[], float],
    ) -> AnswerT:
        """Ask the daemon and wait for its answer.

        Args:
            request: The request.
            call: Its report is told the progress, and its cancellation ends the wait. If the
                report raises, the request is cancelled.
            patience: Called, at most once a connection, after a second without a message; returns
                how many seconds in all the first answer may take, at most 1 to give up at once.

        Raises:
            DaemonUnavailable: The daemon cannot serve the request.
            ResourceLimit: This process may not open the files that it takes.
            CraftcacheError: The daemon's error; or ProtocolMismatch, if it speaks no version of
                the protocol that this release speaks.
            Cancelled: ``call`` was cancelled.
            WireError: The request itself is too large for a message.
        """
        packet = encode(request)
        call = call or Call()
        restarts = Restarts(self._deadlines)
        turn = Turn(self._deadlines, patience)
        while True:
            silence = Silence(self._deadlines, patience)
            try:
                connection = self._kept(packet) or self._opened(packet, silence, call.cancellation)
            except OSError as error:
                if reached := limit_reached(error):
                    raise reached from error
                why = f"{self.path}: {error.strerror or error}"
                if not restarts.expected:
                    raise DaemonUnavailable(why, kind="absent") from error
                restarts.wait(call.cancellation, why)
                continue
            try:
                return self._hear(request, connection, silence, call)
            except Ended as ended:
                restarts.ended(answering=silence.is_answering)
                restarts.wait(call.cancellation, str(ended))
            except Busy as busy:
                turn.wait(call.cancellation, busy)

    def fell_back(self, reason: FallbackReason, served_by: str) -> None:
        """Note a load without the daemon; the next connection tells the daemon of it."""
        with self._lock:
            self._untold[reason, served_by] += 1

    def close(self) -> None:
        """Close the idle connections; a later request opens its own."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._connections.difference_update(idle)
        for connection in idle:
            connection.close()

    def abandon(self) -> None:
        """In a forked child: close its copies of the connections, which the parent still uses."""
        inherited = self._connections
        self._begin_empty()
        for connection in inherited:
            connection.close(for_all=False)

    def _kept(self, packet: bytes) -> DaemonConnection | None:
        """An idle connection on which ``packet`` was sent, or None; closed ones are dropped."""
        while True:
            with self._lock:
                if not self._idle or self._untold:
                    return None
                connection = self._idle.pop()
            if connection.is_quiet() and connection.send(packet):
                return connection
            self._drop(connection)

    def _opened(
        self, packet: bytes, silence: Silence, cancellation: Cancellation
    ) -> DaemonConnection:
        """A new connection on which ``packet`` was sent."""
        with self._lock:
            untold, self._untold = self._untold, Counter()
            connection = DaemonConnection(
                tuple(ReportedFallback(*which, count) for which, count in untold.items())
            )
            self._connections.add(connection)
        try:
            while not connection.connect(self.path):
                cancellation.pause(min(self._deadlines.pause, silence.seconds_left()))
            connection.send(packet)
        except BaseException:
            self._drop(connection)
            raise
        return connection

    def _hear(
        self,
        request: Request[AnswerT],
        connection: DaemonConnection,
        silence: Silence,
        call: Call,
    ) -> AnswerT:
        """Wait for the answer; the connection is kept for reuse only after a complete one."""
        try:
            with call.cancellation.ending(partial(shut, connection.sock)):
                answer = connection.hear(request, silence, call.report)
        except BaseException:
            self._drop(connection)
            call.cancellation.check()
            raise
        self._keep(connection)
        if isinstance(answer, Problem):
            raise _refusal(answer)
        return cast("AnswerT", answer)

    def _keep(self, connection: DaemonConnection) -> None:
        with self._lock:
            if connection in self._connections and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        self._drop(connection)

    def _drop(self, connection: DaemonConnection) -> None:
        with self._lock:
            self._connections.discard(connection)
            for each in connection.untold:
                reason = cast("FallbackReason", each.reason)
                self._untold[reason, each.served_by] += each.count
        connection.close()


def _refusal(problem: Problem) -> Exception:
    error = problem.error
    if problem.own_fault and error.retry_after is not None:
        return Busy(error.message, error.retry_after)
    if problem.own_fault:
        return DaemonUnavailable(error.message)
    return error


_all_sockets: weakref.WeakSet[WorkerSocket] = weakref.WeakSet()


def _abandon_all() -> None:
    for worker_socket in list(_all_sockets):
        worker_socket.abandon()


os.register_at_fork(after_in_child=_abandon_all)
