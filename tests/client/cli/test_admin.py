"""The administrators' interface, as a program uses it."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from craftcache import CraftcacheError, Unavailable
from craftcache.daemon.admin import AdminClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_admin_without_any_socket_directory() -> None:
    with pytest.raises(Unavailable, match="no socket directory"):
        AdminClient(None).remove("org/model")


def test_admin_meets_something_else_on_the_socket(base: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    with (
        answering(base / "craftcache.sock", answer),
        pytest.raises(Unavailable, match="without JSON"),
    ):
        AdminClient(base).remove("org/model")


def test_admin_meets_an_older_daemon(base: Path) -> None:
    body = b'{"title": "Not Found", "status": 404}'
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body)
    with (
        answering(base / "craftcache.sock", head + body),
        pytest.raises(CraftcacheError, match="answers 404 Not Found") as caught,
    ):
        AdminClient(base).remove("org/model")
    assert not caught.value.retryable


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """A server that gives one connection one answer."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()
