"""The daemon and the commands, started by somebody who leaves them a strange inheritance."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from tests.support.clients import as_root
from tests.support.daemons import DaemonProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.hub import TestHub

CHILD_WITH = "import os, signal, sys; {}; os.execv(sys.argv[1], sys.argv[1:])"
"""A program that is started with something set for it, by exec."""

SIGNALS = {
    "SIGCHLD ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "SIGINT ignored": "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "SIGHUP ignored, as by nohup": "signal.signal(signal.SIGHUP, signal.SIG_IGN)",
    "SIGTERM ignored": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "SIGTERM and SIGCHLD blocked": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])"
    ),
    "as a shell's": "None",
}


def started_with(setting: str) -> tuple[str, ...]:
    return (sys.executable, "-c", CHILD_WITH.format(setting))


@pytest.mark.parametrize("how", SIGNALS)
@pytest.mark.usefixtures("export_repo")
def test_a_daemon_with_inherited_signals_serves_and_ends(
    base: Path, threaded_hub: TestHub, how: str
) -> None:
    """Inspection learns how its processes end, and SIGTERM is heard."""
    within = started_with(SIGNALS[how])
    with DaemonProcess(base, within=within, HF_ENDPOINT=threaded_hub.endpoint) as daemon:
        client = daemon.client()
        assert client.warm("org/model")[0].served_by == "daemon"
        assert client.load("org/model").served_by == "daemon"
        assert daemon.terminate() == 0


@pytest.mark.parametrize("is_ignored", [True, False])
def test_an_interrupt_is_for_whoever_did_not_ignore_it(base: Path, is_ignored: bool) -> None:
    within = started_with(SIGNALS["SIGINT ignored" if is_ignored else "as a shell's"])
    with DaemonProcess(base, within=within) as daemon:
        os.kill(daemon.pid, signal.SIGINT)
        if is_ignored:
            assert Client(socket_dir=daemon.socket_dir).status().pid == daemon.pid
            assert daemon.terminate() == 0
            assert "SIGTERM" in daemon.log
        else:
            assert daemon.wait() == 0
            assert "SIGINT" in daemon.log


class Quiet:
    """A daemon whose standard error cannot be listened to; ready when it says so elsewhere."""

    def __init__(self, base: Path, hub: TestHub) -> None:
        self.socket_dir = base / "run"
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(base / "notify"))
        self._command = [
            *(sys.executable, "-m", "craftcached"),
            *("--cache-dir", str(base / "cache")),
            *("--socket-dir", str(self.socket_dir)),
            *("--state-dir", str(base / "state")),
        ]
        self._environment = os.environ | {
            "NOTIFY_SOCKET": str(base / "notify"),
            "HF_ENDPOINT": hub.endpoint,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, within: tuple[str, ...] = (), stderr: int | None = None) -> None:
        self.process = subprocess.Popen(
            [*within, *self._command], env=self._environment, stderr=stderr
        )
        while b"READY=1" not in self._manager.recv(4096):
            pass

    def client(self) -> Client:
        return Client(socket_dir=self.socket_dir, fallback="none")

    def terminate(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._manager.close()


@pytest.fixture
def quiet(base: Path, threaded_hub: TestHub) -> Iterator[Quiet]:
    quiet = Quiet(base, threaded_hub)
    yield quiet
    quiet.close()


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.usefixtures("export_repo")
def test_a_daemon_without_standard_streams_serves(quiet: Quiet, closed: tuple[int, ...]) -> None:
    quiet.start(started_with(f"[os.close(number) for number in {closed}]"))
    assert quiet.client().warm("org/model")[0].served_by == "daemon"
    assert quiet.client().load("org/model").lm["best_state"]
    assert quiet.process is not None
    for number in closed:
        assert os.readlink(f"/proc/{quiet.process.pid}/fd/{number}") == os.devnull
    assert quiet.terminate() == 0


@pytest.mark.usefixtures("export_repo")
def test_a_daemon_whose_log_nobody_reads_serves_and_ends(quiet: Quiet) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    quiet.start(stderr=writer)
    filler = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)
    os.close(writer)
    try:
        while True:
            os.write(filler, b"x")
    except BlockingIOError:
        pass
    client = quiet.client()
    assert client.warm("org/model")[0].served_by == "daemon"
    assert client.load("org/model").served_by == "daemon"
    assert quiet.terminate() == 0
    os.close(filler)
    os.close(reader)


def test_a_daemon_takes_as_many_files_as_it_may(base: Path) -> None:
    within = ("sh", "-c", 'ulimit -Sn 256 && ulimit -Hn 4000 && exec "$@"', "sh")
    with DaemonProcess(base, within=within) as daemon:
        limits = Path(f"/proc/{daemon.pid}/limits").read_text().splitlines()
    (files,) = (line.split() for line in limits if line.startswith("Max open files"))
    assert files[3:5] == ["4000", "4000"]


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("command", [("status",), ("warm", "org/model"), ("ls", "--json")], ids=str)
def test_a_command_without_standard_streams_ends_as_with_them(
    base: Path, closed: tuple[int, ...], command: tuple[str, ...]
) -> None:
    program = [
        *(sys.executable, "-m", "craftcache.cli", "--socket-dir", str(base / "nowhere")),
        *("--cache-dir", str(base / "cache"), *command),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    plain = subprocess.run(program, env=environment, check=False, capture_output=True)
    without = subprocess.run(
        [*started_with(f"[os.close(number) for number in {closed}]"), *program],
        env=environment,
        check=False,
    )
    assert without.returncode == plain.returncode


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_learns_how_its_own_child_ended(base: Path, code: int) -> None:
    """``follow -- CMD`` asks; with SIGCHLD ignored the kernel would not say."""
    program = (
        "import subprocess, sys\n"
        "from craftcache.inherited import put_right\n"
        "put_right()\n"
        f"sys.exit(subprocess.run([sys.executable, '-c', 'raise SystemExit({code})']).returncode)"
    )
    command = [*started_with(SIGNALS["SIGCHLD ignored"]), sys.executable, "-c", program]
    assert subprocess.run(command, check=False).returncode == code


FIRST_PROCESS = ("unshare", "--pid", "--fork", "--kill-child")


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run([*FIRST_PROCESS, "true"], check=False, capture_output=True).returncode == 0
    )


@as_root
@pytest.mark.parametrize("command", [("warm", "org/model"), ("follow", "my-run"), ("load", "a/b")])
def test_sigterm_ends_a_command_that_is_the_first_process_of_a_container(
    base: Path, command: tuple[str, ...]
) -> None:
    """For which signals have no default effect."""
    if not can_unshare():
        pytest.skip("no new process namespace can be made here")
    (base / "worker").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(base / "worker/handles.sock"))
        listener.listen()
        process = subprocess.Popen(
            [
                *(*FIRST_PROCESS, sys.executable, "-m", "craftcache.cli"),
                *("--socket-dir", str(base), "--cache-dir", str(base / "cache"), *command),
            ]
        )
        connection, _ = listener.accept()
        with connection:
            while json.loads(connection.recv(65536)).get("type") == "hello":
                pass  # and then it waits for the answer to what it asked
            (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(child), signal.SIGTERM)
            assert process.wait() == 128 + signal.SIGTERM


SIGNALLED = """
import os, signal, sys

class Signalled:
    def find_spec(self, name, path=None, target=None):
        if name == "craftcache.cli.app":
            os.kill(os.getpid(), int(sys.argv[1]))
            signal.sigtimedwait((), 60)

sys.meta_path.insert(0, Signalled())
from craftcache.cli import main
main()
"""
"""The command, which gets a signal while it still imports what it consists of."""


@as_root
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 1)]
)
def test_a_signal_ends_a_command_that_is_only_starting(number: int, code: int) -> None:
    if not can_unshare():
        pytest.skip("no new process namespace can be made here")
    done = subprocess.run(
        [*FIRST_PROCESS, sys.executable, "-c", SIGNALLED, str(int(number))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
