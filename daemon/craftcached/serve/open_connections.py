"""How connections of workers stand and end: which is idle, which makes way, which still lingers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from .connection_table import ConnectionTable

if TYPE_CHECKING:
    from .connection import User, WorkerConnection
    from .connection_table import Limits

__all__ = ["OpenConnections"]

LINGER_SECONDS = 1.0
"""Time between two looks at a connection that ended with unread descriptors."""


class OpenConnections:
    """The workers' connections from the moment they are accepted until their sockets are closed.

    A connection *rests* while its worker waits for nothing, and *lingers* from its end until its
    last answer is received. All state changes in steps without an await, on the event loop that
    called ``start``, so that there is no lock.

    Args:
        limits: The most that workers can use.

    Attributes:
        table: The connections, counted by user.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.table = ConnectionTable(limits)

    def start(self) -> None:
        """Begin to close connections that rest for too long, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._idle_check = self._loop.call_later(self._limits.idle_seconds, self._end_long_idle)

    def stop(self) -> None:
        """Close none for its rest any more."""
        self._idle_check.cancel()

    def make_room(self, user: User) -> bool:
        """Whether the user's new connection may stay, closing idle ones to make room for it.

        The new connection is counted already.
        """
        # Connections that only lingered for unread descriptors may be over by now.
        if self.table.is_crowded(user):
            self._look_again(user)
        while self.table.is_crowded(user):
            idle = self.table.longest_idle(user, self._loop.time())
            if idle is None:
                return False
            self.end(idle)
        return True

    def rest(self, connection: WorkerConnection) -> None:
        """Count the connection as idle: its worker waits for nothing now."""
        if connection.is_closing:
            return
        connection.user.idle.pop(connection, None)  # to the end, as the one idle shortest
        connection.user.idle[connection] = self._loop.time()

    def end(self, connection: WorkerConnection) -> None:
        """Stop reading and sending; remove the connection once its descriptors are received."""
        if connection.is_closing:
            return
        connection.is_closing = True
        connection.user.idle.pop(connection, None)
        self._loop.remove_reader(connection.descriptor)
        if connection.task is not None:
            connection.task.cancel()
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
        self.linger(connection)

    def linger(self, connection: WorkerConnection) -> None:
        """Remove a connection that has ended, once its task and its descriptors are done with."""
        if connection.sock.fileno() < 0:
            return
        if connection.is_over():
            self.forget(connection)
        elif connection.task is None:
            self._loop.call_later(LINGER_SECONDS, self.linger, connection)

    def forget(self, connection: WorkerConnection) -> None:
        """Close a connection at once, whatever its worker has not received yet."""
        self.table.remove(connection)
        if not connection.is_closing:
            self._loop.remove_reader(connection.descriptor)
            connection.is_closing = True
        connection.sock.close()

    def has_too_much_unread(self, user: User) -> bool:
        """Whether a user's workers have as many descriptors to receive as they may."""
        if user.unread >= self._limits.unread_per_uid:
            self._look_again(user)
        return user.unread >= self._limits.unread_per_uid

    def _look_again(self, user: User) -> None:
        """See which descriptors have been received meanwhile, and remove what that ends."""
        for connection in list(user.connections):
            if connection.has_received() and connection.is_over():
                self.forget(connection)

    def _end_long_idle(self) -> None:
        """Close connections that have been idle too long, so that none is held for ever."""
        for connection in self.table.idle_since(self._loop.time() - self._limits.idle_seconds):
            self.end(connection)
        self._idle_check = self._loop.call_later(self._limits.idle_seconds, self._end_long_idle)
