"""The worker socket as a whole: a pool of connections, and what becomes of a request."""

from __future__ import annotations

import os
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from craftcache.limits import limit_reached
from craftcache.wire import Problem, encode

from .connection import Ended, WorkerConnection
from .failures import DaemonAbsent, DaemonBroken
from .waiting import Cancellation, Deadlines, Restarts, Silence, shut

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.wire import Progress, Request

    from .reply import Reply

__all__ = ["WorkerSocket"]

MAX_IDLE = 8
"""Idle connections kept at most; a process with more threads asking at once opens some anew."""

AnswerT = TypeVar("AnswerT")


class WorkerSocket:
    """The worker socket at ``path``, for any number of threads.

    Idle connections are kept for the next request. Each request has a connection of its own, so
    threads do not wait for each other. A forked child closes what it inherited, without a word to
    the daemon, and opens its own. Every descriptor is close-on-exec.

    Attributes:
        path: Where the daemon listens.
    """

    def __init__(self, path: str | os.PathLike[str], *, deadlines: Deadlines | None = None) -> None:
        self._begin_empty()
        self.path = os.fspath(path)
        self._deadlines = deadlines or Deadlines()
        _all_sockets.add(self)

    def __del__(self) -> None:
        self.close()

    def _begin_empty(self) -> None:
        # The lock guards the other two, and is held across no wait.
        self._lock = threading.Lock()
        self._idle: list[WorkerConnection] = []
        self._connections: set[WorkerConnection] = set()

    def ask(
        self,
        request: Request[AnswerT],
        *,
        patience: Callable[[], float],
        on_progress: Callable[[Progress], None] | None = None,
        cancellation: Cancellation | None = None,
    ) -> Reply[AnswerT]:
        """Ask the daemon and wait for its answer.

        Args:
            request: What to ask for.
            patience: Called, at most once a connection, when nothing was heard for a second: how
                many seconds in all the first answer may take. No more than that second gives up.
            on_progress: Called in this thread with all that is said before the answer. If it
                raises, the request is withdrawn.
            cancellation: For another thread to end the wait.

        Raises:
            DaemonAbsent, DaemonSilent, DaemonBroken: The daemon cannot be had.
            ResourceLimit: This process may not open what it takes.
            CraftcacheError: It refuses the request; or, as ProtocolMismatch, it speaks no version
                of the protocol that this release speaks.
            Cancelled: ``cancellation`` was used.
            WireError: The request itself is too large for a message.
        """
        packet = encode(request)
        cancellation = cancellation or Cancellation()
        restarts = Restarts(self._deadlines)
        while True:
            silence = Silence(self._deadlines, patience)
            try:
                connection = self._kept(packet) or self._opened(packet, silence, cancellation)
            except OSError as error:
                if reached := limit_reached(error):
                    raise reached from error
                why = f"{self.path}: {error.strerror or error}"
                if not restarts.expected:
                    raise DaemonAbsent(why) from error
                restarts.wait(cancellation, why)
                continue
            try:
                return self._hear(request, connection, silence, on_progress, cancellation)
            except Ended as ended:
                restarts.ended(answering=silence.is_broken)
                restarts.wait(cancellation, str(ended))

    def close(self) -> None:
        """Close the idle connections; a later request opens its own."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._connections.difference_update(idle)
        for connection in idle:
            connection.close()

    def abandon(self) -> None:
        """In a forked child: close all that was inherited, which is still the parent's in use."""
        inherited = self._connections
        self._begin_empty()
        for connection in inherited:
            connection.close(for_all=False)

    def _kept(self, packet: bytes) -> WorkerConnection | None:
        """An idle connection on which ``packet`` was sent, or None; closed ones are dropped."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_quiet() and connection.send(packet):
                return connection
            self._drop(connection)

    def _opened(
        self, packet: bytes, silence: Silence, cancellation: Cancellation
    ) -> WorkerConnection:
        """A new connection on which ``packet`` was sent."""
        connection = WorkerConnection()
        with self._lock:
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
        connection: WorkerConnection,
        silence: Silence,
        on_progress: Callable[[Progress], None] | None,
        cancellation: Cancellation,
    ) -> Reply[AnswerT]:
        """Hear the daemon out; the connection is kept only after a whole answer."""
        try:
            with cancellation.ending(partial(shut, connection.sock)):
                reply = connection.hear(request, silence, on_progress)
        except BaseException:
            self._drop(connection)
            cancellation.check()
            raise
        self._keep(connection)
        if isinstance(reply.answer, Problem):
            raise _refusal(reply.answer)
        return cast("Reply[AnswerT]", reply)

    def _keep(self, connection: WorkerConnection) -> None:
        with self._lock:
            if connection in self._connections and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        self._drop(connection)

    def _drop(self, connection: WorkerConnection) -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.close()


def _refusal(problem: Problem) -> Exception:
    if problem.own_fault:
        return DaemonBroken(problem.error.message, problem.error)
    return problem.error


_all_sockets: weakref.WeakSet[WorkerSocket] = weakref.WeakSet()


def _abandon_all() -> None:
    for worker_socket in list(_all_sockets):
        worker_socket.abandon()


os.register_at_fork(after_in_child=_abandon_all)
