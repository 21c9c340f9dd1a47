"""Machines with a real systemd as PID 1, for the tests of the service.

A machine sees the host's files through a layer of its own and shares nothing else with it: its
processes, network, mounts, users and journal are new with each. It boots in about half a second,
needs root and cgroup2, and is gone when its context ends.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support.networks import inside

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["LIBRARIES", "Machine", "why_not"]

_torch = importlib.util.find_spec("torch")
assert _torch is not None, "the tests need torch"
assert _torch.origin is not None
LIBRARIES = Path(_torch.origin).parents[1]
"""Where the tests' libraries are, which a machine has at /srv/site-packages."""

BOOT = Path(__file__).with_name("boot.sh")

SYSTEMD = Path("/lib/systemd/systemd")

TOOLS = ("unshare", "nsenter", "pivot_root", "mount", "systemctl", "journalctl", "setpriv")

BOOT_SECONDS = 60.0
"""Patience, not expectation: the tests' own machine may be busy."""

RUN_SECONDS = 100.0
WAIT_SECONDS = 30.0


@functools.cache
def why_not() -> str | None:
    """Why no machine can run here; None where one can."""
    if os.geteuid() != 0:
        return "a machine of its own needs root"
    if not SYSTEMD.exists():
        return "systemd is not installed"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{missing[0]} is not installed"
    if _own_cgroup() is None:
        return "cgroup2 is not mounted, or not to be written to"
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--cgroup", "--uts", "--ipc", "--net", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces: {probe.stderr.strip()}" if probe.returncode else None


class Machine:
    """One booted machine; a context manager.

    Args:
        image: A directory with what an earlier machine has written, to go on from; None for a
            fresh one.
    """

    def __init__(self, image: Path | None = None) -> None:
        self._image = image
        self._life = contextlib.ExitStack()
        self._directory: Path
        self.pid = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as life:
            temporary = tempfile.TemporaryDirectory(prefix="cc-machine-")
            self._directory = directory = Path(life.enter_context(temporary))
            directory.chmod(0o755)
            for name in ("root", "work", "upper"):
                (directory / name).mkdir(mode=0o755)
            if self._image is not None:
                _copy(self._image, directory / "upper")
            cgroup = life.enter_context(_cgroup())
            notify = life.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            notify.bind(os.fspath(directory / "notify"))
            process = life.enter_context(self._boot(directory, cgroup))
            _wait_ready(notify, process)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            self.pid = int(children.read_text())
            self._life = life.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._life.close()

    def save(self, image: Path) -> None:
        """Keep what this machine has written, for others to go on from."""
        self.run("sync")
        _copy(self._directory / "upper", image)

    @contextlib.contextmanager
    def _boot(self, directory: Path, cgroup: Path) -> Iterator[subprocess.Popen[bytes]]:
        namespaces = ("--mount", "--pid", "--fork", "--cgroup", "--uts", "--ipc", "--net")
        arguments = (
            os.fspath(directory),
            os.fspath(LIBRARIES),
            sys.base_prefix,
        )
        enter = f'echo $$ >{shlex.quote(os.fspath(cgroup))}/cgroup.procs; exec "$@"'
        process = subprocess.Popen(
            [
                *("sh", "-c", enter, "sh"),
                *("unshare", "--kill-child=KILL", *namespaces, os.fspath(BOOT), *arguments),
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(
        self,
        *command: str,
        check: bool = True,
        stdin: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine as root, and wait for it; its output is captured."""
        result = subprocess.run(
            [*self._entering(environment or {}), *command],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_SECONDS,
        )
        if check and result.returncode:
            raise AssertionError(
                f"{shlex.join(command)} exits {result.returncode}:\n{result.stdout}{result.stderr}"
            )
        return result

    def start(
        self, *command: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command in the machine as root, in a session of its own; output is captured."""
        return subprocess.Popen(
            [*self._entering(environment or {}), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _entering(self, environment: Mapping[str, str]) -> list[str]:
        spaces = ("--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup")
        variables = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        return [
            *("nsenter", f"--target={self.pid}", *spaces, "--root", "--wd"),
            *("env", "-i", *(f"{k}={v}" for k, v in (variables | dict(environment)).items())),
        ]

    def systemctl(self, *arguments: str) -> str:
        """What systemctl says; fails the test if it fails."""
        return self.run("systemctl", *arguments).stdout.strip()

    def property(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def journal(self, unit: str, *arguments: str) -> str:
        """A unit's messages, without date and host."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--unit", unit, "--output=cat", *arguments).stdout

    def wait_journal(self, unit: str, text: str) -> str:
        """Wait until the unit has written a line with ``text``, past ones included; returns it."""
        follow = ("journalctl", "--unit", unit, "--output=cat", "--lines=all", "--follow")
        process = self.start(*follow)

        def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # nsenter's child is what follows

        overdue = threading.Timer(WAIT_SECONDS, end)
        overdue.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if text in line:
                    return line
        finally:
            overdue.cancel()
            end()
            process.communicate()
        raise AssertionError(f"{unit} never writes {text!r}:\n{self.journal(unit)}")

    def path(self, path: str) -> Path:
        """A path of the machine, as the host reaches it; not through absolute links."""
        return Path(f"/proc/{self.pid}/root{path}")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file in the machine, and its directories where they are missing."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def drop_in(self, unit: str, text: str, name: str = "test.conf") -> None:
        """Add to a unit's settings."""
        self.write(f"/etc/systemd/system/{unit}.d/{name}", text)
        self.systemctl("daemon-reload")

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """The machine's network for this thread, and for all threads that it starts inside."""
        with inside(self.pid):
            yield


def _copy(layer: Path, to: Path) -> None:
    """A file system layer with all that makes it one: owners, modes, attributes, removed names."""
    subprocess.run(["cp", "--archive", "--reflink=auto", f"{layer}/.", to], check=True)


def _wait_ready(notify: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """Until systemd says that it has booted."""
    notify.settimeout(BOOT_SECONDS / 60)
    for _ in range(60):
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in notify.recv(4096).split(b"\n"):
                return
        if process.poll() is not None:
            break
    raise AssertionError("the machine does not boot; what went wrong is on stderr")


def _own_cgroup() -> Path | None:
    """This process's cgroup of version 2, where children can be made in it."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if kind == "cgroup2":
            break
    else:
        return None
    own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].splitlines()
    path = Path(mount, own[0] if own else "")
    return path if os.access(path, os.W_OK) else None


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """A new cgroup; removed at the end, when all of its processes are dead."""
    parent = _own_cgroup()
    assert parent is not None, "asked for a machine where why_not() says why not"
    path = Path(tempfile.mkdtemp(prefix="craftcache-", dir=parent))
    try:
        yield path
    finally:
        _wait_empty(path)
        for directory, _, _ in os.walk(path, topdown=False):
            os.rmdir(directory)


def _wait_empty(cgroup: Path) -> None:
    """Until the kernel has buried the last process: it says so by an event on the file."""
    import select

    with open(cgroup / "cgroup.events") as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while "populated 1" in events.read():
            poll.poll(1000)
            events.seek(0)
