"""One connection to the daemon: packets to messages, and descriptors with an owner."""

from __future__ import annotations

import _socket
import array
import math
import os
import select
import socket
from typing import TYPE_CHECKING

from craftcache.errors import ProtocolMismatch
from craftcache.limits import no_descriptors_left
from craftcache.wire import (
    MAX_FILES,
    MAX_MESSAGE,
    VERSIONS,
    Hello,
    Problem,
    Progress,
    WireError,
    decode_answer,
    encode,
)

from .failures import DaemonUnavailable
from .waiting import shut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craftcache.wire import Answer, ReportedFallback, Request

    from .waiting import Silence

__all__ = ["DaemonConnection", "Ended"]

_HELLO = encode(Hello())
_INT_BYTES = array.array("i").itemsize
MAX_DESCRIPTORS = 3 * MAX_FILES
"""In one answer: for each file its own, its index and, of a GPU's service, a lease."""

_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * _INT_BYTES)


class Ended(Exception):
    """The daemon closed the connection before it had answered."""


class DaemonConnection:
    """A connection to the daemon, for one thread at a time.

    Args:
        fallbacks: Loads without the daemon that the hello tells of.

    Attributes:
        sock: The socket, not blocking; waits on it poll.
        untold: Those of which the daemon may not have heard yet.
    """

    __slots__ = ("_greeted", "_poll", "sock", "untold")

    def __init__(self, fallbacks: tuple[ReportedFallback, ...] = ()) -> None:
        self.untold = fallbacks
        # The class that no other module takes the place of: PySocks knows only TCP, and gevent's
        # and eventlet's would add nothing, since waits here poll.
        self.sock = _socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self._poll: select.poll | None = None
        if hasattr(select, "poll"):  # eventlet takes it away from the module
            self._poll = select.poll()
            self._poll.register(self.sock, select.POLLIN)
        self._greeted = False

    def connect(self, path: str) -> bool:
        """Connect and send the hello; False if the daemon's backlog is full at this moment.

        Raises:
            OSError: No process listens at ``path``.
        """
        try:
            self.sock.connect(path)
        except BlockingIOError:
            return False
        self.send(encode(Hello(fallbacks=self.untold)) if self.untold else _HELLO)
        return True

    def is_quiet(self) -> bool:
        """Whether the connection is open and nothing has come on it since the last answer."""
        return not self._has_word(0)

    def send(self, packet: bytes) -> bool:
        """Send one packet; False where the daemon has closed the connection.

        Messages that it sent before it closed can still be received.
        """
        try:
            self.sock.send(packet)
        except OSError:
            return False
        return True

    def hear(
        self,
        request: Request[object],
        silence: Silence,
        report: Callable[[Progress], None],
    ) -> Answer | Problem:
        """Wait for the answer to ``request``, and report the progress until then.

        Raises:
            Ended: The connection ended before.
            DaemonUnavailable: Nothing was heard for too long; or what was heard is not of this
                protocol, or answers something else.
            ResourceLimit: This process may not have the descriptors that came.
            ProtocolMismatch: The daemon speaks no version that this release speaks.
        """
        while True:
            message = self._receive(silence)
            if isinstance(message, Hello):
                self._greet(message)
                continue
            if not self._greeted:
                raise DaemonUnavailable("the daemon said no hello", kind="protocol")
            silence.heard()
            if isinstance(message, Progress):
                report(message)
            elif isinstance(message, Problem) or request.is_answered_by(message):
                return message
            else:
                why = f"the answer to {request.TYPE!r} is another {message.TYPE!r}"
                raise DaemonUnavailable(why, kind="protocol")

    def close(self, *, for_all: bool = True) -> None:
        """Close it; with ``for_all`` also for forked processes that hold a copy."""
        if for_all:
            shut(self.sock)
        self.sock.close()

    def _greet(self, hello: Hello) -> None:
        if self._greeted:
            raise DaemonUnavailable("the daemon said hello twice", kind="protocol")
        if VERSIONS.common(hello.versions) is None:
            theirs, ours = hello.versions, VERSIONS
            raise ProtocolMismatch(
                f"the daemon ({hello.software}) speaks versions {theirs.low} to {theirs.high} of "
                f"the protocol, this client {ours.low} to {ours.high}",
                hint="Bring client and daemon to neighbouring releases",
            )
        self._greeted = True
        self.untold = ()  # it has read this process's hello before it said its own

    def _receive(self, silence: Silence) -> Hello | Progress | Answer | Problem:
        while not self._has_word(silence.seconds_left()):
            pass
        try:
            packet, ancillary, flags, _ = self._receive_packet()
        except OSError as error:
            raise Ended(error.strerror) from error
        descriptors = _descriptors(ancillary)
        try:
            return _parse(packet, flags, descriptors)
        except BaseException:  # no message owns them
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def _has_word(self, seconds: float) -> bool:
        """Whether a message, or the end of the connection, comes within ``seconds``."""
        if self._poll is not None:
            return bool(self._poll.poll(math.ceil(seconds * 1000)))
        try:
            readable, _, _ = select.select([self.sock], [], [], seconds)  # eventlet's, as a rule
            return bool(readable)
        except ValueError:  # the system's own knows no descriptors from 1024 on
            return self._has_word_by_timeout(seconds)

    def _has_word_by_timeout(self, seconds: float) -> bool:
        self.sock.settimeout(seconds)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, TimeoutError):
            return False
        except OSError:
            return True  # recvmsg then raises the same error
        finally:
            self.sock.setblocking(False)
        return True

    def _receive_packet(self) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
        flags = socket.MSG_CMSG_CLOEXEC
        try:
            return self.sock.recvmsg(MAX_MESSAGE + 1, _ANCILLARY_BYTES, flags)
        except ConnectionResetError:
            # Reported once, and before what the daemon said last: it closed without having read
            # all that was sent to it.
            return self.sock.recvmsg(MAX_MESSAGE + 1, _ANCILLARY_BYTES, flags)


def _parse(
    packet: bytes, flags: int, descriptors: Sequence[int]
) -> Hello | Progress | Answer | Problem:
    if not packet:
        raise Ended("the daemon closed it")
    try:
        return decode_answer(packet, descriptors)
    except WireError as error:
        # The kernel cut them though there was room in the buffer: the process has no number left.
        if flags & socket.MSG_CTRUNC and len(descriptors) < MAX_DESCRIPTORS:
            raise no_descriptors_left() from error
        why = f"the daemon's message is malformed: {error}"
        raise DaemonUnavailable(why, kind="protocol") from error


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % _INT_BYTES])
    return tuple(descriptors)
