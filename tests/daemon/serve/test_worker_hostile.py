"""Workers that break the rules, and what the others notice of it: nothing."""

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from craftcache.errors import ProtocolMismatch, Unavailable
from craftcache.sources import parse
from craftcache.wire import (
    MAX_MESSAGE,
    Hello,
    Load,
    Loaded,
    Models,
    Problem,
    Progress,
    Resolve,
    Status,
    Versions,
    Warm,
    encode,
)
from craftcached.serve.worker import Limits, WorkerStatistics
from tests.support import ROOT, SUPPORT
from tests.support.sockets import FunctionBackend, RawWorker, load, serving
from tests.support.sockets.backend import BLOB
from tests.support.sockets.serving import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.sockets import Serving

DESCRIPTORS = 3
"""In the answer to a load of the test backend."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path, FunctionBackend(tmp_path)) as running:
        yield running


def greeted(running: Serving) -> RawWorker:
    worker = RawWorker(running.path)
    worker.greet()
    return worker


def check_others_are_served(running: Serving) -> None:
    with greeted(running) as worker:
        assert isinstance(worker.ask(load("hot")), Loaded)
        assert os.pread(worker.descriptors[0], 100, 0) == BLOB


# --- Nonsense ---

MESSAGES = st.sampled_from(
    [
        encode(Hello()),
        encode(Hello(Versions(1, 7))),
        encode(load("hot")),
        encode(load("cold")),
        b'{"type": "load", "source": "hot", "filenames": ["../x"]}',
        encode(Resolve(parse("a"), "b")),
        encode(Warm(parse("hot"))),
        encode(Status()),
        encode(Models()),
        b'{"type": "load"}',
        b'{"type": "follow", "source": "watch:x"}',
        b"[" * 50_000,
        b" " * (MAX_MESSAGE + 1),
        b" " * 100_000,
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(MESSAGES | st.binary(min_size=1, max_size=300), max_size=12), st.booleans())
def test_no_sequence_of_packets_harms_anybody(
    shared_server: Serving, packets: list[bytes], reads: bool
) -> None:
    with RawWorker(shared_server.path) as hostile:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # expelled meanwhile
            for packet in packets:
                hostile.say(packet)
        hostile.sock.shutdown(socket.SHUT_WR)
        while reads and hostile.hear() is not None:
            pass
        check_others_are_served(shared_server)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    directory = tmp_path_factory.mktemp("shared")
    with serving(directory, FunctionBackend(directory)) as running:
        yield running


@pytest.mark.parametrize(
    "packet",
    [
        b"garbage",
        b'{"type": "follow"}',
        b" " * (MAX_MESSAGE + 1),
        b" " * 150_000,
        encode(Hello()),
        encode(Progress("hot", None, 0, None, "queued")),
    ],
    ids=["garbage", "unknown", "too large", "far too large", "hello again", "an answer"],
)
def test_who_breaks_the_protocol_is_told_and_expelled(server: Serving, packet: bytes) -> None:
    with greeted(server) as worker:
        worker.say(packet)
        problem = worker.hear()
        assert type(problem.error) is ProtocolMismatch
        assert not problem.own_fault
        assert worker.hear() is None
    check_others_are_served(server)


def test_a_request_without_a_hello_is_refused(server: Serving) -> None:
    with RawWorker(server.path) as worker:
        worker.say(Status())
        assert type(worker.hear().error) is ProtocolMismatch
        assert worker.hear() is None


def test_a_message_of_exactly_the_limit_is_a_message(server: Serving) -> None:
    with greeted(server) as worker:
        request = encode(load("hot"))
        assert isinstance(worker.ask(request.ljust(MAX_MESSAGE)), Loaded)


def test_descriptors_sent_to_the_daemon_are_dropped(server: Serving) -> None:
    with greeted(server) as worker:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            socket.send_fds(worker.sock, [encode(Status())], [worker.sock.fileno()] * 9)
            assert not isinstance(worker.hear_answer(), Problem)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_second_request_before_the_answer_ends_both(tmp_path: Path) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def hang(_backend: FunctionBackend, _request: Load, _report: Any) -> Loaded:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    with (
        serving(tmp_path, FunctionBackend(tmp_path, cold=hang)) as running,
        greeted(running) as worker,
    ):
        worker.say(load("cold"))
        assert begun.wait(SECONDS)
        worker.say(load("hot"))
        assert type(worker.hear_answer().error) is ProtocolMismatch
        assert worker.hear() is None
        assert cancelled.wait(SECONDS)


# --- Workers that do not read ---


def test_a_request_before_the_last_answer_was_received_ends_the_connection(
    server: Serving,
) -> None:
    with greeted(server) as worker:
        worker.say(load("hot"))
        worker.wait_answered()
        worker.say(load("hot"))
        worker.wait_hung_up()
        assert isinstance(worker.hear(), Loaded)
        assert type(worker.hear().error) is ProtocolMismatch
        assert worker.hear() is None
    check_others_are_served(server)


def test_what_is_sent_and_not_received_is_limited(tmp_path: Path) -> None:
    limits = Limits(unread_per_uid=2 * DESCRIPTORS)
    with (
        serving(tmp_path, FunctionBackend(tmp_path), limits) as running,
        greeted(running) as one,
        greeted(running) as two,
        greeted(running) as three,
    ):
        for worker in (one, two):
            worker.say(load("hot"))
            worker.wait_answered()
        refusal = three.ask(load("hot"))
        assert refusal.own_fault
        assert type(refusal.error) is Unavailable
        assert isinstance(one.hear(), Loaded)  # which makes room
        assert isinstance(three.ask(load("hot")), Loaded)


@pytest.mark.parametrize("how", ["half close", "break the protocol"])
def test_what_is_not_received_counts_after_the_connection_has_ended(
    tmp_path: Path, how: str
) -> None:
    limits = Limits(unread_per_uid=DESCRIPTORS)
    with (
        serving(tmp_path, FunctionBackend(tmp_path), limits) as running,
        greeted(running) as lingering,
        greeted(running) as other,
    ):
        lingering.say(load("hot"))
        lingering.wait_answered()
        if how == "half close":
            lingering.sock.shutdown(socket.SHUT_WR)
        else:
            lingering.say(b"garbage")
        lingering.wait_hung_up()
        assert isinstance(other.ask(load("hot")), Problem)
        assert running.statistics().connections == 2
        assert isinstance(lingering.hear(), Loaded)
        while lingering.hear() is not None:
            pass
        assert isinstance(other.ask(load("hot")), Loaded)
        assert running.statistics().connections == 1


def test_a_worker_that_reads_none_of_its_progress_is_dropped(tmp_path: Path) -> None:
    flooded = threading.Event()

    async def flood(backend: FunctionBackend, request: Load, report: Any) -> Loaded:
        for i in range(2000):
            report(Progress("cold" * 1000, f"{i}", 0, None, "fetching"))
        flooded.set()
        return backend.opened(request.source)

    before = len(os.listdir("/proc/self/fd"))
    limits = Limits(send_seconds=0.05)
    with serving(tmp_path, FunctionBackend(tmp_path, cold=flood), limits) as running:
        with greeted(running) as worker:
            worker.say(load("cold"))
            assert flooded.wait(SECONDS)
            check_others_are_served(running)
            worker.wait_hung_up()
            assert worker.hear_answer() is None
        assert running.statistics() == WorkerStatistics(connections=0, requests=0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_worker_that_reads_late_gets_its_answer(tmp_path: Path) -> None:
    flooded = threading.Event()

    async def flood(backend: FunctionBackend, request: Load, report: Any) -> Loaded:
        for i in range(2000):
            report(Progress("cold" * 1000, f"{i}", 0, None, "fetching"))
        flooded.set()
        return backend.opened(request.source)

    limits = Limits(send_seconds=SECONDS)
    with (
        serving(tmp_path, FunctionBackend(tmp_path, cold=flood), limits) as running,
        greeted(running) as worker,
    ):
        worker.say(load("cold"))
        assert flooded.wait(SECONDS)
        check_others_are_served(running)
        assert isinstance(worker.hear_answer(), Loaded)
        assert isinstance(worker.ask(load("hot")), Loaded)


def test_who_connects_as_an_unread_answer_is_given_up_is_served(tmp_path: Path) -> None:
    flooded = threading.Event()

    async def flood(backend: FunctionBackend, request: Load, report: Any) -> Loaded:
        for i in range(2000):
            report(Progress("cold" * 1000, f"{i}", 0, None, "fetching"))
        flooded.set()
        return backend.opened(request.source)

    with (
        serving(tmp_path, FunctionBackend(tmp_path, cold=flood)) as running,
        greeted(running) as leaving,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as coming,
    ):
        leaving.say(load("cold"))
        assert flooded.wait(SECONDS)
        running.settle()

        async def change_places() -> None:
            """In one step: the server learns of both at once, and has a number to give again."""
            leaving.sock.shutdown(socket.SHUT_RDWR)
            coming.connect(os.fspath(running.path))
            coming.send(encode(Hello()))

        coming.settimeout(SECONDS)
        running.run(change_places())
        assert coming.recv(1000) == encode(Hello())
        running.settle()
        assert running.statistics() == WorkerStatistics(connections=1, requests=0)


# --- Exhaustion ---


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
    with tempfile.TemporaryDirectory() as directory:
        shutil.chown(directory, 65534, 65534)
        # The right to read any file is kept, for Python itself may be installed under /root.
        reading = "-all,+dac_read_search"
        drop = ["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
        drop += [f"--{kind}={reading}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
        command = [setpriv, *drop, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"--basetemp={directory}/tests", __file__],
            env=os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": directory, "TMPDIR": directory},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "root is exempt" not in done.stdout
