"""Workers that use up what the daemon or its machine has: each user has a share, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.wire import Hello, Load, Loaded, encode
from craftcached.serve.worker import Limits, WorkerStatistics
from tests.support import ROOT, SUPPORT
from tests.support.sockets import (
    FunctionBackend,
    RawWorker,
    check_others_are_served,
    greeted,
    load,
    serving,
)
from tests.support.sockets.serving import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.sockets import Serving


@contextlib.contextmanager
def open_files_limited_to(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_server_without_descriptors_accepts_again_when_it_has_some(server: Serving) -> None:
    check_others_are_served(server)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as unused:
        taken = max(map(int, os.listdir("/proc/self/fd")))
        fillers = [os.dup(unused.fileno()) for _ in range(taken)]
        with open_files_limited_to(max(fillers)):
            unused.connect(os.fspath(server.path))
            server.settle()
        for filler in fillers:
            os.close(filler)
        unused.settimeout(SECONDS)
        unused.send(encode(Hello()))
        assert unused.recv(1000) == encode(Hello())


class ScarceLoop(asyncio.SelectorEventLoop):
    """An event loop that cannot watch one more socket after those that it has, until it may."""

    is_full = False

    def add_reader(self, *arguments: Any) -> None:  # type: ignore[override]  # whatever it takes
        if self.is_full:
            raise OSError(errno.ENOSPC, "as many sockets as epoll may watch for this user")
        super().add_reader(*arguments)


def test_a_connection_that_cannot_be_watched_ends(tmp_path: Path) -> None:
    loop = ScarceLoop()
    with serving(tmp_path, FunctionBackend(tmp_path), loop=loop) as running:
        running.settle()
        loop.is_full = True
        with RawWorker(running.path) as turned_away:
            assert turned_away.hear() is None
        assert running.statistics() == WorkerStatistics(connections=0, requests=0)
        loop.is_full = False
        check_others_are_served(running)


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root is exempt from the kernel's limit; run as another user below"
)
def test_too_many_descriptors_in_flight_are_a_problem_that_a_retry_mends(tmp_path: Path) -> None:
    limits = Limits(unread_per_uid=10_000)
    with (
        open_files_limited_to(400),
        serving(tmp_path, FunctionBackend(tmp_path), limits) as running,
    ):
        with contextlib.ExitStack() as unread:
            for _ in range(150):
                worker = unread.enter_context(greeted(running))
                worker.say(load("hot"))
                worker.wait_answered()
            with greeted(running) as another:
                refusal = another.ask(load("hot"))
            assert refusal.own_fault
            assert refusal.error.retryable
        check_others_are_served(running)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_a_user_who_takes_all_leaves_the_others_theirs() -> None:
    limits = Limits(connections=300, connections_per_uid=50, unread_per_uid=60)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        running = stack.enter_context(serving(directory, FunctionBackend(directory), limits))
        with flooded_by(running, "65534", "hot"):
            for _ in range(20):
                check_others_are_served(running)
            running.settle()
            assert running.statistics().connections <= 50


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_users_who_want_more_than_can_be_worked_on_leave_the_others_a_share() -> None:
    begun = threading.Semaphore(0)

    async def hang(_backend: FunctionBackend, _request: Load, _report: Any) -> Loaded:
        begun.release()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    def wait_begun(count: int) -> None:
        for _ in range(count):
            assert begun.acquire(timeout=SECONDS)

    limits = Limits(requests=20)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        backend = FunctionBackend(directory, cold=hang)
        running = stack.enter_context(serving(directory, backend, limits))
        for uid, share in (("65534", 10), ("65533", 5)):  # half of what is left, each
            stack.enter_context(flooded_by(running, uid, "cold"))
            wait_begun(share)
        with greeted(running) as worker:
            worker.say(load("cold"))
            wait_begun(1)
            assert running.statistics().requests == 16


@contextlib.contextmanager
def flooded_by(running: Serving, uid: str, source: str) -> Iterator[None]:
    program = SUPPORT / "sockets" / "flooding.py"
    command = [sys.executable, str(program), str(running.path), uid, source]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as flooder:
        assert flooder.stdout is not None
        assert flooder.stdout.readline() == b"holding 200\n"
        yield
        flooder.communicate(timeout=SECONDS)
        assert flooder.returncode == 0


# --- The same without privileges ---


@pytest.mark.skipif(os.geteuid() != 0, reason="this run has no privileges to lose")
def test_all_of_this_as_an_unprivileged_user() -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv of util-linux is missing")
    hostile = str(Path(__file__).with_name("test_worker_hostile.py"))
    with tempfile.TemporaryDirectory() as directory:
        shutil.chown(directory, 65534, 65534)
        # The right to read any file is kept, for Python itself may be installed under /root.
        reading = "-all,+dac_read_search"
        drop = ["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
        drop += [f"--{kind}={reading}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
        command = [setpriv, *drop, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"--basetemp={directory}/tests", hostile, __file__],
            env=os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": directory, "TMPDIR": directory},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "root is exempt" not in done.stdout
