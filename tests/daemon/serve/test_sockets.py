"""The daemon's sockets as files: their modes, and who may take the place of whose."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from craftcached.serve.sockets import bind_admin_socket, bind_worker_socket
from tests.support.sockets import RawWorker
from tests.support.sockets.serving import SECONDS

if TYPE_CHECKING:
    from pathlib import Path


def test_the_socket_and_its_directory_have_the_modes_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with bind_worker_socket(tmp_path, mode=0o620, gid=os.getgid()):
            directory = (tmp_path / "worker").stat()
            path = (tmp_path / "worker" / "handles.sock").stat()
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.st_mode) == 0o755
    assert stat.S_IMODE(path.st_mode) == 0o620
    assert path.st_gid == os.getgid()


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    for bind in (bind_worker_socket, bind_admin_socket):
        bind(tmp_path).close()
        with bind(tmp_path) as listener:
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            with pytest.raises(OSError, match="another daemon") as caught:
                bind(tmp_path)
            assert caught.value.errno == errno.EADDRINUSE


def test_of_daemons_that_start_at_once_one_wins(tmp_path: Path) -> None:
    bind_worker_socket(tmp_path).close()  # a stale one, which all of them want to replace
    together = threading.Barrier(8)

    def start(_: int) -> socket.socket | None:
        together.wait(SECONDS)
        try:
            return bind_worker_socket(tmp_path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return None

    with ThreadPoolExecutor(8) as threads:
        listeners = [listener for listener in threads.map(start, range(8)) if listener]
    assert len(listeners) == 1
    with listeners[0] as listener, RawWorker(tmp_path / "worker" / "handles.sock"):
        listener.accept()[0].close()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()
    path = tmp_path / "worker" / "handles.sock"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        bind_worker_socket(tmp_path)
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    room = 107 - len(os.fsencode(tmp_path / "x" / "worker" / "handles.sock"))
    bind_worker_socket(tmp_path / ("x" * (1 + room))).close()
    too_long = tmp_path / ("x" * (2 + room))
    with pytest.raises(OSError, match="at most 107 bytes") as caught:
        bind_worker_socket(too_long)
    assert caught.value.filename == os.fspath(too_long / "worker" / "handles.sock")
    assert not too_long.exists()
