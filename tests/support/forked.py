"""Daemons and commands forked from a process that has imported them: tests start thousands.

The import is most of their start, and the same each time. What depends on how a program is executed
is tested with one that is executed: by systemd, in an image, in ``tests/inherited``, and wherever a
test has it run ``within`` another command.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import queue
import re
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ForkedProcess", "can_be_forked", "run_command"]

Program = Literal["craftcache", "craftcached"]

MAX_MESSAGE = 256 * 1024

READ_BY_IMPORTS = re.compile(r"SSL_|PYTHON|LANG|LC_|LD_|PATH")
"""Variables that an interpreter, or a library that is imported, reads once."""

_AT_FIRST = frozenset(os.environ.items())


def _namespaces() -> tuple[str, ...]:
    """Those that a process has which this thread starts."""
    return tuple(os.readlink(f"/proc/thread-self/ns/{kind}") for kind in ("mnt", "net"))


_NAMESPACES = _namespaces()


def can_be_forked(environment: Mapping[str, str]) -> bool:
    """Whether a forked process would be as one that is executed now with this environment.

    Outside pytest none is forked: what a benchmark measures is what users start.
    """
    if "PYTEST_VERSION" not in os.environ:
        return False
    changed = {name for name, _ in environment.items() ^ _AT_FIRST}
    return _namespaces() == _NAMESPACES and not any(map(READ_BY_IMPORTS.match, changed))


def run_command(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run ``craftcache`` with these arguments to its end; used like subprocess.run."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        _, pidfd, ending = _server().fork("craftcache", arguments, environment, (err, out))
        try:
            ending.is_over.wait()
        finally:
            os.close(pidfd)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(
            ["craftcache", *arguments], ending.status, out.read(), err.read()
        )


class ForkedProcess:
    """A process that runs ``python -m craftcached`` with these arguments; used like a Popen.

    Args:
        arguments: Of the command line.
        environment: All of it.

    Attributes:
        pid: Its process id.
        stderr: What it says, as text.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        said, says = os.pipe()
        with open(says, "wb", buffering=0) as sink:
            self.pid, self._pidfd, self._ending = _server().fork(
                "craftcached", arguments, environment, (sink,)
            )
        self.stderr: IO[str] = open(said)  # noqa: SIM115  # whoever reads it closes it

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._ending.status if self._ending.is_over.is_set() else None

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        self._ending.is_over.wait()
        return self._ending.status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End it as a crash would."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def __del__(self) -> None:
        os.close(self._pidfd)


class _Ending:
    """How a process has ended, once it has."""

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self.status = 0


class _ForkServer:
    """The process that forks, as its parent sees it; it ends with its parent."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = (sys.executable, "-m", __name__, str(theirs.fileno()))
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self._one_at_a_time = threading.Lock()
        self._forked: queue.SimpleQueue[tuple[int, int, _Ending] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

        def end() -> None:
            self._socket.shutdown(socket.SHUT_RDWR)
            process.wait()
            self._reader.join()
            self._socket.close()

        atexit.register(end)

    def fork(
        self,
        program: Program,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        outputs: Sequence[IO[Any]],
    ) -> tuple[int, int, _Ending]:
        """Fork a program: its process id, a descriptor for it, and how it will have ended.

        Args:
            program: Which.
            arguments: Of its command line.
            environment: All of it.
            outputs: Its stderr, and its stdout where that is not this process's.

        Raises:
            ChildProcessError: The process that forks has ended.
        """
        asked = {
            "program": program,
            "argv": list(arguments),
            "env": dict(environment),
            "cwd": os.getcwd(),
        }
        descriptors = [output.fileno() for output in outputs]
        with self._one_at_a_time:
            socket.send_fds(self._socket, [json.dumps(asked).encode()], descriptors)
            forked = self._forked.get()
        if forked is None:
            self._forked.put(None)  # for whoever asks next
            raise ChildProcessError("the process that forks the tests' daemons has ended")
        return forked

    def _read(self) -> None:
        endings: dict[int, _Ending] = {}
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE, 1)
            if not message:
                for ending in endings.values():
                    ending.status = -signal.SIGKILL  # how it ended, nobody says
                    ending.is_over.set()
                self._forked.put(None)
                return
            told = json.loads(message)
            if descriptors:
                ending = endings[told["pid"]] = _Ending()
                self._forked.put((told["pid"], descriptors[0], ending))
            else:
                ending = endings.pop(told["pid"])
                ending.status = told["status"]
                ending.is_over.set()


@functools.cache
def _server() -> _ForkServer:
    return _ForkServer()


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for whoever is connected; returns in each child, with what it is to do.

    Returns:
        None in the server itself, once nobody is connected any more.
    """
    with connection, selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        children: dict[int, int] = {}
        while True:
            for key, _ in selector.select():
                if key.fd in children:
                    selector.unregister(key.fd)
                    pid = children.pop(key.fd)
                    os.close(key.fd)
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with contextlib.suppress(BrokenPipeError):
                        connection.send(json.dumps({"pid": pid, "status": status}).encode())
                    continue
                message, outputs, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 2)
                if not message:
                    return None
                if (pid := os.fork()) == 0:
                    for output, stream in zip(outputs, (sys.stderr, sys.stdout), strict=False):
                        os.dup2(output, stream.fileno())
                    for descriptor in (*outputs, *children):
                        os.close(descriptor)
                    asked: dict[str, Any] = json.loads(message)
                    return asked
                for output in outputs:
                    os.close(output)
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid
                selector.register(pidfd, selectors.EVENT_READ)
                socket.send_fds(connection, [json.dumps({"pid": pid}).encode()], [pidfd])


def _main() -> None:
    import craftcache.cli.app
    import craftcached.__main__
    import craftcached.app  # noqa: F401

    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is None:
        return
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.argv[1:] = asked["argv"]
    if asked["program"] == "craftcache":
        sys.argv[0] = os.path.join(os.path.dirname(sys.executable), "craftcache")
        sys.modules["__main__"].__package__ = None  # as of a script; usage lines have its name
        craftcache.cli.main()
    else:
        runpy.run_module("craftcached", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
