"""One worker's connection: its socket, its state, and whether it has received its last answer."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from craftcache.wire import MAX_MESSAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .peers import Peer

__all__ = ["WorkerConnection", "ReceiveBuffer", "User"]

_ZERO = struct.pack("i", 0)


class ReceiveBuffer:
    """Room for one packet; one serves all connections, as packets are parsed when they come."""

    __slots__ = ("_view",)

    def __init__(self) -> None:
        # A byte more than a message may have: a packet that fills it was too large.
        self._view = memoryview(bytearray(MAX_MESSAGE + 1))

    def receive(self, sock: socket.socket) -> memoryview:
        """The next packet, valid until the next call; empty at the end of the connection.

        The kernel drops descriptors that came with it, as no room for them is given.

        Raises:
            OSError: Nothing to read (BlockingIOError), or the connection broke.
        """
        return self._view[: sock.recv_into(self._view)]


@dataclass(eq=False, slots=True)
class User:
    """The share of the server that one uid uses.

    Attributes:
        connections: The open connections, and those that ended with unread descriptors.
        idle: Connections whose worker waits for nothing, longest idle first, each with the event
            loop's time since when it is idle.
        unread: Sum of the connections' unread descriptors.
        requests: Requests that are being worked on; those that only wait for a watch not counted.
    """

    connections: set[WorkerConnection] = field(default_factory=set)
    idle: dict[WorkerConnection, float] = field(default_factory=dict)
    unread: int = 0
    requests: int = 0


class WorkerConnection:
    """A connected worker.

    The descriptors of an answer are *unread* from the moment it is sent until the worker has
    received it: so long they count against what the kernel allows the daemon's user to have in
    flight, and closing our end does not change that.

    Attributes:
        sock: The connected socket, not blocking.
        descriptor: Descriptor number of ``sock``; the event loop takes numbers much faster than
            sockets.
        peer: The process that connected.
        user: What the uid of that process uses of the server.
        greeted: Whether it has sent its hello.
        drops_next: Whether its next packet is dropped: a request in a version not agreed on.
        task: The task that works on its request; None while there is none.
        unread: Number of descriptors in the last answer, until that is known to be received.
        is_closing: Whether no more is read from it or sent to it.
        is_extra: Whether it came beyond the limits, and ends after one answer.
    """

    __slots__ = (
        "descriptor",
        "drops_next",
        "greeted",
        "is_closing",
        "is_extra",
        "peer",
        "sock",
        "task",
        "unread",
        "user",
    )

    def __init__(self, sock: socket.socket, peer: Peer, user: User) -> None:
        self.sock = sock
        self.descriptor = sock.fileno()
        self.peer = peer
        self.user = user
        self.greeted = False
        self.drops_next = False
        self.task: asyncio.Task[None] | None = None
        self.unread = 0
        self.is_closing = False
        self.is_extra = False

    def has_received(self) -> bool:
        """Whether the worker has the last answer's descriptors, which then count no longer."""
        if self.unread and fcntl.ioctl(self.sock, termios.TIOCOUTQ, _ZERO) == _ZERO:
            self.user.unread -= self.unread
            self.unread = 0
        return not self.unread

    def has_unheard(self) -> bool:
        """Whether the worker has said something that was not read yet."""
        return fcntl.ioctl(self.sock, termios.FIONREAD, _ZERO) != _ZERO

    def is_over(self) -> bool:
        """Whether the socket may be closed, and its number given to another.

        Not while a task waits on it: the event loop knows sockets by number, and what the task
        takes back at its end would be the next one's.
        """
        return self.is_closing and self.task is None and self.has_received()

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send a packet; False where the worker has left too much unread for it to fit.

        Raises:
            OSError: The connection broke; or, as ETOOMANYREFS, too many descriptors are in
                flight to workers that do not read.
        """
        try:
            if descriptors:
                socket.send_fds(self.sock, [packet], list(descriptors))
            else:
                self.sock.send(packet)
        except BlockingIOError:
            return False
        self.unread += len(descriptors)
        self.user.unread += len(descriptors)
        return True

    async def wait_writable(self) -> None:
        """Wait until a packet may fit again."""
        loop = asyncio.get_running_loop()
        writable = asyncio.Event()
        loop.add_writer(self.descriptor, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(self.descriptor)
