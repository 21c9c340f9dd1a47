"""One connection to the daemon: packets to messages, and descriptors with an owner."""

from __future__ import annotations

import _socket
import array
import math
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
    Loaded,
    Problem,
    Progress,
    WireError,
    decode_answer,
    encode,
)

from .failures import DaemonBroken
from .reply import Reply
from .waiting import shut

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.wire import Answer, Request

    from .waiting import Silence

__all__ = ["WorkerConnection", "Ended"]

_HELLO = encode(Hello())
_INT_BYTES = array.array("i").itemsize
_ANCILLARY_BYTES = socket.CMSG_SPACE(2 * MAX_FILES * _INT_BYTES)


class Ended(Exception):
    """The daemon closed the connection before it had answered."""


class WorkerConnection:
    """A connection, for one thread at a time.

    Attributes:
        sock: Not blocking; whoever waits on it polls.
    """

    __slots__ = ("_greeted", "_poll", "sock")

    def __init__(self) -> None:
        # The class that no other module takes the place of: PySocks knows only TCP, and gevent's
        # and eventlet's would add nothing, since whoever waits here polls.
        self.sock = _socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self._poll: select.poll | None = None
        if hasattr(select, "poll"):  # eventlet takes it away from the module
            self._poll = select.poll()
            self._poll.register(self.sock, select.POLLIN)
        self._greeted = False

    def connect(self, path: str) -> bool:
        """Connect and say hello; False where the daemon has no room for one more just now.

        Raises:
            OSError: Nobody listens at ``path``.
        """
        try:
            self.sock.connect(path)
        except BlockingIOError:
            return False
        self.send(_HELLO)
        return True

    def is_quiet(self) -> bool:
        """Whether the connection still stands and nothing unasked has come on it."""
        return not self._has_word(0)

    def send(self, packet: bytes) -> bool:
        """Send one packet; False where the daemon has closed the connection.

        What it said before it closed can still be heard.
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
        on_progress: Callable[[Progress], None] | None,
    ) -> Reply[Answer | Problem]:
        """Wait for the answer to ``request``, and report what is said until then.

        Raises:
            Ended: The connection ended before.
            DaemonSilent: Nothing was heard for too long.
            DaemonBroken: What was heard is not of this protocol, or answers something else.
            ResourceLimit: This process may not have the descriptors that came.
            ProtocolMismatch: The daemon speaks no version that this release speaks.
        """
        while True:
            reply = self._receive(silence)
            message = reply.answer
            if isinstance(message, Hello):
                self._greet(message)
                continue
            if not self._greeted:
                raise DaemonBroken("the daemon said no hello")
            silence.heard()
            if isinstance(message, Progress):
                if on_progress is not None:
                    on_progress(message)
            elif isinstance(message, Problem) or request.is_answered_by(message):
                return Reply(message, reply.take())
            else:
                raise DaemonBroken(f"the answer to {request.TYPE!r} is another {message.TYPE!r}")

    def close(self, *, for_all: bool = True) -> None:
        """Close it, if ``for_all`` also where a forked process still holds a copy."""
        if for_all:
            shut(self.sock)
        self.sock.close()

    def _greet(self, hello: Hello) -> None:
        if self._greeted:
            raise DaemonBroken("the daemon said hello twice")
        if VERSIONS.common(hello.versions) is None:
            theirs, ours = hello.versions, VERSIONS
            raise ProtocolMismatch(
                f"the daemon ({hello.software}) speaks versions {theirs.low} to {theirs.high} of "
                f"the protocol, this client {ours.low} to {ours.high}",
                hint="Bring client and daemon to neighbouring releases",
            )
        self._greeted = True

    def _receive(self, silence: Silence) -> Reply[Hello | Progress | Answer | Problem]:
        while not self._has_word(silence.seconds_left()):
            pass
        try:
            packet, ancillary, flags, _ = self._receive_packet()
        except OSError as error:
            raise Ended(error.strerror) from error
        with Reply(packet, _descriptors(ancillary)) as reply:
            message = _parse(packet)
            came = reply.descriptor_count
            expected = message.descriptor_count if isinstance(message, Loaded) else 0
            is_cut = bool(flags & socket.MSG_CTRUNC)
            if is_cut and came < expected:  # the kernel gave as many as this process may have
                raise no_descriptors_left()
            if is_cut or came != expected:
                raise DaemonBroken(f"{came} descriptors came where {expected} should have")
            return Reply(message, reply.take())

    def _has_word(self, seconds: float) -> bool:
        """Whether something can be received, or the end, at once or within ``seconds``."""
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
            return True  # receiving says what it is
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


def _parse(packet: bytes) -> Hello | Progress | Answer | Problem:
    if not packet:
        raise Ended("the daemon closed it")
    try:
        return decode_answer(packet)
    except WireError as error:
        raise DaemonBroken(f"the daemon's message is malformed: {error}") from error


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % _INT_BYTES])
    return tuple(descriptors)
