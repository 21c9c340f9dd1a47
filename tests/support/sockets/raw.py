"""A worker that sends what it likes and reads when it likes."""

from __future__ import annotations

import array
import os
import select
import socket
from typing import TYPE_CHECKING

from craftcache.wire import MAX_FILES, Hello, Loaded, Progress, decode_answer, encode

from .backend import BLOB, load
from .serving import SECONDS

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Any, Self

    from .serving import Serving

_ROOM = socket.CMSG_SPACE(2 * MAX_FILES * 4)


class RawWorker:
    """A connection to a worker socket.

    Attributes:
        sock: The connection; operations on it time out where a test would hang.
        descriptors: All that were received; closed at the end of the ``with`` block.
    """

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(SECONDS)
        self.sock.connect(os.fspath(path))
        self.descriptors: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.sock.close()
        for descriptor in self.descriptors:
            os.close(descriptor)

    def say(self, *messages: Any) -> None:
        """Send messages, or whatever bytes are given instead."""
        for message in messages:
            self.sock.send(message if isinstance(message, bytes) else encode(message))

    def greet(self) -> None:
        """Exchange hellos."""
        self.say(Hello())
        assert self.hear() == Hello()

    def hear(self) -> Any:
        """The next message, or None at the end of the connection."""
        try:
            packet, ancillary, _, _ = self._receive()
        except ConnectionResetError:  # what was said before is still to be read
            packet, ancillary, _, _ = self._receive()
        received = array.array("i")
        for _, _, data in ancillary:
            received.frombytes(data)
        self.descriptors.extend(received)
        own = list(map(os.dup, received))  # the message closes its own
        return decode_answer(packet, own) if packet else None

    def hear_answer(self) -> Any:
        """The next message that is no progress."""
        while isinstance(message := self.hear(), Progress):
            pass
        return message

    def ask(self, request: Any) -> Any:
        """One request and its answer."""
        self.say(request)
        return self.hear_answer()

    def wait_answered(self) -> None:
        """Wait until there is something to hear, and do not hear it."""
        self.sock.recv(1, socket.MSG_PEEK)

    def wait_hung_up(self) -> None:
        """Wait until the other side has closed, and hear nothing of what it said before."""
        poll = select.poll()
        poll.register(self.sock, 0)
        assert poll.poll(SECONDS * 1000)

    def _receive(self) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        return self.sock.recvmsg(70_000, _ROOM, socket.MSG_CMSG_CLOEXEC)


def greeted(running: Serving) -> RawWorker:
    """A worker that has said hello."""
    worker = RawWorker(running.path)
    worker.greet()
    return worker


def check_others_are_served(running: Serving) -> None:
    """That a worker beside those that a test is about gets what it asks for."""
    with greeted(running) as worker:
        assert isinstance(worker.ask(load("hot")), Loaded)
        assert os.pread(worker.descriptors[0], 100, 0) == BLOB
