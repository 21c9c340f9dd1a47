"""A daemon that does with each connection what the test says."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from craftcache.wire import Hello, encode

from .serving import SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

    Scene = Callable[["ScriptedDaemon", socket.socket], None]


class ScriptedDaemon:
    """Accepts one connection for each scene, in order, and plays the scene on it.

    Args:
        path: Where it listens.
        scenes: What is done with each connection; it is closed when its scene ends.
    """

    def __init__(self, path: str | Path, *scenes: Scene) -> None:
        self.path = Path(path)
        self._scenes = scenes
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._play)
        self.listen()

    def listen(self) -> None:
        """Listen on the path, which must be free."""
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.settimeout(SECONDS)
        self.listener.bind(os.fspath(self.path))
        self.listener.listen()

    def vanish(self) -> None:
        """Stop listening and remove the socket."""
        self.listener.close()
        self.path.unlink()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.join()
        self.listener.close()
        if self._failures and error is None:
            raise self._failures[0]

    def _play(self) -> None:
        try:
            for scene in self._scenes:
                connection, _ = self.listener.accept()
                with connection:
                    connection.settimeout(SECONDS)
                    scene(self, connection)
        except BaseException as error:  # noqa: BLE001  # raised in the test's own thread
            self._failures.append(error)


def hear_request(connection: socket.socket) -> None:
    """Receive a hello and a request."""
    assert connection.recv(70_000)
    assert connection.recv(70_000)


def answer(*messages: Any) -> Scene:
    """A scene: hear a request, say hello and ``messages``, and wait for the other side to close."""

    def play(_daemon: ScriptedDaemon, connection: socket.socket) -> None:
        hear_request(connection)
        for message in (Hello(), *messages):
            connection.send(message if isinstance(message, bytes) else encode(message))
        wait_closed(_daemon, connection)

    return play


def wait_closed(_daemon: ScriptedDaemon, connection: socket.socket) -> None:
    """A scene: say nothing, until the other side closes."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(70_000):
            pass


def hang_up(_daemon: ScriptedDaemon, connection: socket.socket) -> None:
    """A scene: take a request and close the connection without a word."""
    hear_request(connection)


def socket_path(directory: Path) -> Path:
    """Where a worker looks for a daemon whose sockets are under ``directory``."""
    path = directory / "run" / "worker" / "handles.sock"
    path.parent.mkdir(parents=True)
    return path
