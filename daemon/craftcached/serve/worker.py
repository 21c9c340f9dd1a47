"""``worker/handles.sock``: workers' requests in, answers and open files out.

Speaks :mod:`craftcache.wire`, checks limits and hands each request to a Handler; decides nothing
about models. A worker can be slow, hostile or gone without harm to any other:

- It has one request at a time. A second one before the answer to the first was *received* ends
  the connection.
- Its user's connections are limited: where there are too many the longest idle one makes way, and
  where none is idle a newcomer gets one hit, or is told to come back. So are the descriptors sent
  to a user's workers and not yet received, so that no user can use up what the kernel allows the
  daemon in flight; a connection with such descriptors counts until they are received, whoever
  closes it.
- Progress that does not fit into its buffer is left out; an answer that does not fit for
  ``send_seconds`` ends the connection.
- When it goes away, the work for its request is cancelled.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from craftcache.errors import InvalidSource, ProtocolMismatch
from craftcache.wire import (
    VERSIONS,
    Follow,
    Hello,
    Identify,
    Models,
    Status,
    WireError,
    decode_request,
    encode,
)

from .connection import ReceiveBuffer, WorkerConnection
from .connection_table import Limits, WorkerStatistics
from .open_connections import OpenConnections
from .peers import Peer
from .reporting import Reporter
from .response import Response, overloaded

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Sequence

    from craftcache.errors import CraftcacheError
    from craftcache.wire import ReportedFallback, Request
    from craftcached.job_log import Refusals

    from .handler import Handler

__all__ = ["Limits", "WorkerServer", "WorkerStatistics"]

log = logging.getLogger("craftcached")

ACCEPTS_AT_ONCE = 64
"""Connections accepted before those that stand get their turn again."""

ACCEPT_PAUSE_SECONDS = 0.5
"""Pause in accepting connections when the daemon has no descriptor left for one."""

_HELLO = encode(Hello())


class WorkerServer:
    """Serves a listening socket of type SOCK_SEQPACKET; use ``start`` and ``drain``.

    All state changes in steps without an await, on the event loop that called ``start``, so that
    there is no lock. The listening socket stays the caller's, to close or to hand on.

    Args:
        listener: The socket; bound and listening, made by systemd or by bind_worker_socket.
        handler: Answers requests.
        limits: The most that workers can use.
        refusals: Logs what is refused here, before it comes to the handler; None logs nothing.
        fallbacks: Called with the loads without the daemon that a worker tells of.
    """

    def __init__(
        self,
        listener: socket.socket,
        handler: Handler,
        limits: Limits | None = None,
        *,
        refusals: Refusals | None = None,
        fallbacks: Callable[[Sequence[ReportedFallback]], None] = lambda _: None,
    ) -> None:
        self._listener = listener
        self._handler = handler
        self._limits = limits or Limits()
        self._refusals = refusals
        self._fallbacks = fallbacks
        self._buffer = ReceiveBuffer()
        self._open = OpenConnections(self._limits)
        self._table = self._open.table
        self._tasks: set[asyncio.Task[None]] = set()
        self._followers: set[asyncio.Task[None]] = set()
        self._is_draining = False

    def start(self) -> None:
        """Start to accept workers, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._open.start()
        self._listen()

    def listen_on(self, listener: socket.socket) -> None:
        """Accept workers from another socket from now on, and close the one before."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._listener = listener
        if not self._is_draining:
            self._listen()

    def _listen(self) -> None:
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)

    async def drain(self, seconds: float) -> None:
        """Stop accepting, give running requests ``seconds`` to finish, then close all connections.

        A worker whose request is cut off asks the process that listens on the socket next.
        """
        self._is_draining = True
        self._open.stop()
        self._loop.remove_reader(self._listener)
        for connection in self._table.all():
            if connection.task is None or connection.task in self._followers:
                self._open.end(connection)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._followers, return_exceptions=True)
        for connection in self._table.all():
            self._open.forget(connection)

    def statistics(self) -> WorkerStatistics:
        """The numbers of connections and requests now."""
        return WorkerStatistics(self._table.count, len(self._tasks), len(self._followers))

    # --- Connections come ---

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("no worker is accepted for a moment: %s", error)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(ACCEPT_PAUSE_SECONDS, self._accept_again)
                return
            self._admit(sock)

    def _accept_again(self) -> None:
        if not self._is_draining:
            self._loop.add_reader(self._listener, self._accept)

    def _admit(self, sock: socket.socket) -> None:
        """Set up an accepted connection; if that fails, close it and leave the others alone."""
        sock.setblocking(False)
        try:
            peer = Peer.of(sock)
        except OSError as error:
            log.warning("a worker of an unknown user is turned away: %s", error)
            sock.close()
            return
        connection = WorkerConnection(sock, peer, self._table.user(peer.uid))
        self._table.add(connection)
        try:
            self._welcome(connection)
        except Exception:
            log.exception("a worker of uid %d is turned away", peer.uid)
            self._open.end(connection)

    def _welcome(self, connection: WorkerConnection) -> None:
        has_place = self._open.make_room(connection.user) or self._table.add_extra(connection)
        if not has_place:
            self._send(connection, Response(_HELLO))
            self._send(connection, self._busy(connection, "connection", "too many connections"))
            self._open.end(connection)
            return
        self._open.rest(connection)
        self._loop.add_reader(connection.descriptor, self._read, connection)
        self._read(connection)  # as a rule hello and request have arrived already

    # --- What they say ---

    def _read(self, connection: WorkerConnection) -> None:
        try:
            packet = self._buffer.receive(connection.sock)
        except BlockingIOError:
            return
        except OSError:
            self._open.end(connection)
            return
        if not packet:
            self._open.end(connection)
        elif connection.drops_next:
            connection.drops_next = False
        elif connection.task is not None:
            self._expel(connection, "a packet came before the last request was answered")
        elif connection.has_received():
            self._hear(connection, packet)
        else:
            self._expel(connection, "a packet came before the last answer was received")

    def _hear(self, connection: WorkerConnection, packet: memoryview) -> None:
        try:
            message = decode_request(packet)
        except WireError as error:
            self._expel(connection, str(error))
        except InvalidSource as error:
            self._answer(connection, self._refused(connection, "request", error))
        else:
            if isinstance(message, Hello) == connection.greeted:
                self._expel(connection, "a conversation begins with one hello")
            elif isinstance(message, Hello):
                self._greet(connection, message)
            else:
                self._begin(connection, message)

    def _greet(self, connection: WorkerConnection, hello: Hello) -> None:
        connection.greeted = True
        if hello.fallbacks:
            self._fallbacks(hello.fallbacks)
        self._send(connection, Response(_HELLO))
        version = VERSIONS.common(hello.versions)
        if version is None:
            low, high = hello.versions.low, hello.versions.high
            self._expel(connection, f"no common version: the client speaks {low} to {high}")
            return
        connection.drops_next = version != hello.versions.high
        self._read(connection)  # a request is sent along with the hello

    def _expel(self, connection: WorkerConnection, why: str) -> None:
        """Answer a worker that breaks the protocol with an error, and close its connection."""
        error = ProtocolMismatch(why, hint="Bring client and daemon to neighbouring releases")
        self._send(connection, self._refused(connection, "packet", error))
        self._open.end(connection)

    def _busy(self, connection: WorkerConnection, what: str, why: str) -> Response:
        """The response that has a worker ask again."""
        error = overloaded(why)
        self._log_refusal(connection, what, error)
        return Response.overload(error)

    def _refused(self, connection: WorkerConnection, what: str, error: CraftcacheError) -> Response:
        """The response that refuses what a worker has sent."""
        self._log_refusal(connection, what, error)
        return Response.problem(error)

    def _log_refusal(self, connection: WorkerConnection, what: str, error: CraftcacheError) -> None:
        if self._refusals is not None:
            peer = connection.peer
            self._refusals.log(what, error, uid=peer.uid, pid=peer.pid)

    # --- What becomes of a request ---

    def _begin(self, connection: WorkerConnection, request: Request[Any]) -> None:
        if self._open.has_too_much_unread(connection.user):
            too_much = "too many descriptors wait to be received"
            self._answer(connection, self._busy(connection, request.TYPE, too_much))
            return
        response = self._handle_nowait(request, connection.peer)
        if response is not None:
            self._answer(connection, response)
        elif isinstance(request, Follow):
            self._work(connection, self._serve(connection, request), self._followers)
        elif isinstance(request, Status | Models | Identify):
            # Always answered, however busy the daemon is: they take a moment and no bytes.
            self._work(connection, self._serve(connection, request), self._tasks)
        elif connection.is_extra:
            self._answer(connection, self._busy(connection, request.TYPE, "too many connections"))
        elif connection.user.requests >= self._limits.requests - len(self._tasks):
            self._answer(connection, self._busy(connection, request.TYPE, "too many requests"))
        else:
            self._work(connection, self._serve(connection, request), self._tasks)

    def _handle_nowait(self, request: Request[Any], peer: Peer) -> Response | None:
        try:
            answer = self._handler.handle_nowait(request, peer)
            return None if answer is None else Response.of(answer)
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker gets an answer
            return Response.problem(error)

    async def _handle(self, request: Request[Any], peer: Peer, report: Reporter) -> Response:
        try:
            return Response.of(await self._handler.handle(request, peer, report))
        except Exception as error:  # noqa: BLE001  # whatever it is, the worker gets an answer
            return Response.problem(error)

    async def _serve(self, connection: WorkerConnection, request: Request[Any]) -> None:
        def send(packet: bytes) -> None:
            self._send(connection, Response(packet))

        with Reporter(send, request, self._limits.heartbeat_seconds) as report:
            response = await self._handle(request, connection.peer, report)
        await self._deliver(connection, response)

    def _work(
        self,
        connection: WorkerConnection,
        coroutine: Coroutine[None, None, None],
        tasks: set[asyncio.Task[None]],
    ) -> None:
        connection.user.idle.pop(connection, None)
        task = connection.task = self._loop.create_task(coroutine)
        tasks.add(task)
        if tasks is self._tasks:
            connection.user.requests += 1
        task.add_done_callback(partial(self._worked, connection))

    def _worked(self, connection: WorkerConnection, task: asyncio.Task[None]) -> None:
        if task in self._tasks:
            connection.user.requests -= 1
        self._tasks.discard(task)
        self._followers.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("a worker gets no answer", exc_info=error)
        if connection.task is task:
            connection.task = None
        if connection.is_closing:
            self._open.linger(connection)
        elif task.cancelled() or error is not None or self._is_draining or connection.is_extra:
            self._open.end(connection)
        elif connection.task is None:
            self._open.rest(connection)

    # --- Answers ---

    def _answer(self, connection: WorkerConnection, response: Response) -> None:
        """Send an answer now, or as soon as it fits."""
        if self._send(connection, response):
            response.close()
            if connection.is_extra:
                self._open.end(connection)
            else:
                self._open.rest(connection)
        else:
            self._work(connection, self._deliver(connection, response), self._tasks)

    async def _deliver(self, connection: WorkerConnection, response: Response) -> None:
        try:
            async with asyncio.timeout(self._limits.send_seconds):
                while not self._send(connection, response):
                    await connection.wait_writable()
        except TimeoutError:
            self._open.end(connection)
        finally:
            response.close()
            connection.task = None  # from now on the worker may send its next request

    def _send(self, connection: WorkerConnection, response: Response) -> bool:
        """Send a response if it fits; True also where the worker is gone, as nobody waits."""
        if connection.is_closing:
            return True
        try:
            return connection.send(response.packet, response.descriptors)
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                return self._send(
                    connection, Response.busy("too many descriptors wait to be received")
                )
            self._open.end(connection)
            return True
