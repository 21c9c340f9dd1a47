"""The daemon's end of the process that inspecting processes are forked from, see ``forkserver``."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

import craftcache
import craftcached

from .forkserver import MAX_MESSAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["InspectingProcesses", "ServerEnded"]

IDLE_SECONDS = 60.0
"""Time without an inspection after which the server is ended: it takes some 20 MB of memory."""

_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""What it may see of the daemon's environment; tokens are not among it."""

_START: Final = (
    "import sys; sys.path[:0] = sys.argv.pop(1), sys.argv.pop(1)\n"
    "from craftcached.inspect.forkserver import main; main()"
)
"""What it runs: Python itself looks for no packages, nor for what a user would add."""


class ServerEnded(Exception):
    """The server ended, and with it all that it had forked."""


class InspectingProcesses:
    """Runs inspecting processes; to be closed when none is running any more.

    The server is started when it is needed, and again after it ended for whatever reason. All
    state changes on the event loop in steps without an await, but for the start, which all that
    want the server wait for.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._server: _Server | None = None
        self._start: asyncio.Task[_Server] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._running = 0

    def kill(self) -> None:
        """End all that are running; each ``run`` raises ServerEnded."""
        if self._server is not None:
            self._server.kill()

    async def close(self) -> None:
        """End the server."""
        self._stay()
        if self._start is not None:
            with contextlib.suppress(OSError):
                self._server = await self._start
        if self._server is not None:
            await self._server.close()

    async def run(self, file: int, result: int, *, cpu_seconds: int, deadline: float) -> int:
        """Inspect one file in a process of its own; returns how that process ended.

        A cancelled caller, and one whose time is up, waits until the process has ended.

        Args:
            file: Descriptor of the checkpoint.
            result: Descriptor of the file that the verdict is written to, see ``child``.
            cpu_seconds: CPU time that the process may take.
            deadline: Seconds after which it is killed.

        Raises:
            TimeoutError: It was killed because it took longer than ``deadline``.
            ServerEnded: It ended with the server.
            OSError: No process can be started now.
        """
        self._running += 1
        self._stay()
        try:
            server = await self._started()
            return await server.run(
                next(self._numbers), file, result, cpu_seconds=cpu_seconds, deadline=deadline
            )
        finally:
            self._running -= 1
            if not self._running:
                self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.kill)

    def _stay(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    async def _started(self) -> _Server:
        """The server, alive a moment ago."""
        while self._server is None or self._server.has_ended:
            if self._start is None:
                self._start = asyncio.create_task(_Server.start())
            # Whoever asks may be cancelled: others wait for the same start.
            started = await asyncio.shield(asyncio.wait([self._start]))
            for done in started[0]:
                if done is self._start:
                    self._start = None
                    self._server = done.result()
        return self._server


class _Server:
    """One server process."""

    def __init__(self, process: asyncio.subprocess.Process, door: socket.socket) -> None:
        self._process = process
        self._door = door
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self.has_ended = False
        asyncio.get_running_loop().add_reader(door, self._hear)
        # Beside the socket's end: what was just forked may hold that open a moment longer.
        self._watch = asyncio.create_task(self._end_with_process())

    @classmethod
    async def start(cls) -> _Server:
        door, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with others:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _START, *_roots()),
                *map(str, (others.fileno(), os.getpid())),
                pass_fds=[others.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,  # an interrupt at the terminal is the daemon's
            )
        door.setblocking(False)
        return cls(process, door)

    async def run(
        self, number: int, file: int, result: int, *, cpu_seconds: int, deadline: float
    ) -> int:
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[number] = ended
        self._ask({"begin": number, "cpu_seconds": cpu_seconds}, [file, result])
        try:
            await asyncio.wait([ended], timeout=deadline)
            if not ended.done():
                raise TimeoutError
        finally:
            if not ended.done():
                self._ask({"kill": number})
            while not ended.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([ended])
            del self._waiting[number]
            failure = ended.exception()
        if failure is not None:
            raise failure
        return ended.result()

    def kill(self) -> None:
        """End it and all that it has forked; those that wait hear of it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        self.kill()
        await self._watch

    async def _end_with_process(self) -> None:
        await self._process.wait()
        self._end()

    def _ask(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        if not self.has_ended:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # _hear hears of it
                socket.send_fds(self._door, [json.dumps(message).encode()], descriptors)

    def _hear(self) -> None:
        try:
            packet = self._door.recv(MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._end()
            return
        message = json.loads(packet)
        waiting = self._waiting[message.get("ended") or message["refused"]]
        if "errno" in message:
            waiting.set_exception(OSError(message["errno"], os.strerror(message["errno"])))
        else:
            waiting.set_result(int(message["status"]))

    def _end(self) -> None:
        if self.has_ended:
            return
        self.has_ended = True
        asyncio.get_running_loop().remove_reader(self._door)
        self._door.close()
        for waiting in self._waiting.values():
            if not waiting.done():  # what it said last may be unheard, and is found out again
                waiting.set_exception(ServerEnded())


def _roots() -> list[str]:
    """Where the server finds our two packages."""
    return [os.path.dirname(package.__path__[0]) for package in (craftcache, craftcached)]
