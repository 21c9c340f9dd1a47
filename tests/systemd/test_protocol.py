"""What passes between the daemon and any service manager; needs no systemd."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from craftcached.serve.sockets import bind_admin_socket, bind_worker_socket
from craftcached.systemd import JournalFormatter, is_journal
from tests.support.api import Api
from tests.support.daemons import DaemonProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 30.0

ACTIVATE = (
    'exec 3<&"$1" 4<&"$2"; shift 2; '
    'LISTEN_FDS=2 LISTEN_FDNAMES=craftcache.socket:craftcache.socket LISTEN_PID=$$ exec "$@"'
)


class Manager:
    """Hears what the daemon tells."""

    def __init__(self, address: socket.socket) -> None:
        self._address = address
        self._heard: list[str] = []

    def wait(self, state: str) -> str:
        """Wait for a message with the line ``state``, or one that begins so; returns the line."""
        while True:
            while self._heard:
                line = self._heard.pop(0)
                if line.startswith(state):
                    return line
            self._heard += self._address.recv(4096).decode().split("\n")


@pytest.fixture
def manager(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as address:
        address.bind(str(base / "notify"))
        address.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(base / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        yield Manager(address)


def test_the_manager_hears_of_the_daemons_whole_life(base: Path, manager: Manager) -> None:
    with DaemonProcess(base) as daemon:
        manager.wait("READY=1")
        manager.wait("WATCHDOG=1")
        os.kill(daemon.pid, signal.SIGHUP)
        manager.wait("RELOADING=1")
        assert manager.wait("MONOTONIC_USEC=").removeprefix("MONOTONIC_USEC=").isdigit()
        manager.wait("READY=1")
        manager.wait("WATCHDOG=1")
        assert daemon.terminate() == 0
        manager.wait("STOPPING=1")


def test_a_daemon_that_cannot_start_is_never_ready(base: Path, manager: Manager) -> None:
    with DaemonProcess(base), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nobody:
        manager.wait("READY=1")
        nobody.bind(str(base / "other"))
        nobody.setblocking(False)
        second = DaemonProcess(base, NOTIFY_SOCKET=str(base / "other"))
        second.spawn()
        assert second.wait() == 1
        second.__exit__()
        heard = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                heard += nobody.recv(4096)
        assert b"READY" not in heard


def test_inherited_sockets_are_served_and_outlive_the_daemon(base: Path) -> None:
    run = base / "run"
    with bind_admin_socket(run) as admin, bind_worker_socket(run) as worker:
        fds = (admin.fileno(), worker.fileno())
        arguments = [f"--{name}-dir={base / name}" for name in ("cache", "state")]
        process = subprocess.Popen(
            [
                *("bash", "-c", ACTIVATE, "bash", *map(str, fds)),
                *(sys.executable, "-m", "craftcached", f"--socket-dir={run}", *arguments),
            ],
            pass_fds=fds,
        )
        try:
            with Client(socket_dir=run, fallback="none") as client, Api(run) as api:
                assert client.status().pid == process.pid
                assert api.get("/status")["pid"] == process.pid
        finally:
            process.terminate()
        assert process.wait() == 0
        assert (run / "craftcache.sock").is_socket()
        assert (run / "worker" / "handles.sock").is_socket()


def test_a_socket_that_is_not_the_daemons_is_refused_in_words(base: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, bind_worker_socket(base) as worker:
        fds = (tcp.fileno(), worker.fileno())
        finished = subprocess.run(
            [
                *("bash", "-c", ACTIVATE, "bash", *map(str, fds)),
                *(sys.executable, "-m", "craftcached", f"--cache-dir={base / 'cache'}"),
            ],
            pass_fds=fds,
            capture_output=True,
            text=True,
            check=False,
        )
    assert finished.returncode == 1
    assert "descriptor 3 is no socket that the daemon serves" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_every_line_for_the_journal_has_its_priority() -> None:
    formatter = JournalFormatter("%(message)s")
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    lines = formatter.format(record).splitlines()
    assert lines[0] == "<3>failed"
    assert lines[-1] == "<3>ValueError: why"
    assert all(line.startswith("<3>") for line in lines)


def test_only_the_journals_own_stream_is_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        status = os.fstat(log.fileno())
        stream = f"{status.st_dev}:{status.st_ino}"
        assert is_journal(log.fileno(), {"JOURNAL_STREAM": stream})
        assert not is_journal(log.fileno(), {"JOURNAL_STREAM": f"{stream}0"})
        assert not is_journal(log.fileno(), {})
