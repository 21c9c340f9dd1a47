"""The daemon's end of the worker socket: the conversation, its limits, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import blockbuster_ctx

from craftcache.errors import CraftcacheError, InvalidSource, NotFound, ProtocolMismatch
from craftcache.sources import parse
from craftcache.wire import (
    MAX_MESSAGE,
    Hello,
    Load,
    Loaded,
    Progress,
    Resolve,
    Status,
    Versions,
    Warm,
    encode,
)
from craftcached.serve.sockets import bind_worker_socket
from craftcached.serve.worker import Limits, WorkerServer, WorkerStatistics
from tests.support.sockets import FunctionBackend, RawWorker, file_info, load, serving, status
from tests.support.sockets.backend import BLOB, INDEX
from tests.support.sockets.serving import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.sockets import Serving
    from tests.support.sockets.backend import Cold


class Gate:
    """A backend function that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.opened = threading.Event()

    async def __call__(self, backend: FunctionBackend, request: Load, _report: Any) -> Loaded:
        self.begun.release()
        try:
            await asyncio.to_thread(self.opened.wait, SECONDS)
        except asyncio.CancelledError:
            self.cancelled.release()
            self.opened.set()
            raise
        return backend.opened(request.source)


@contextlib.contextmanager
def talking(directory: Path, cold: Cold, limits: Limits | None = None) -> Iterator[RawWorker]:
    """A worker that has said hello, to a server where ``cold`` does what is not at hand."""
    backend = FunctionBackend(directory, cold=cold)
    with serving(directory, backend, limits) as running, RawWorker(running.path) as worker:
        worker.greet()
        yield worker


# --- The conversation ---


def test_hello_and_request_may_be_sent_at_once(server: Serving) -> None:
    with RawWorker(server.path) as worker:
        worker.say(Hello(), load("hot"))
        assert worker.hear() == Hello()
        loaded = worker.hear()
        assert isinstance(loaded, Loaded)
        assert len(worker.descriptors) == len(loaded.descriptors) == 3
        assert [os.pread(each, 100, 0) for each in worker.descriptors] == [BLOB, INDEX, BLOB]


def test_a_request_that_has_to_wait_is_acknowledged_at_once(tmp_path: Path) -> None:
    gate = Gate()
    with talking(tmp_path, gate) as worker:
        worker.say(load("cold"))
        assert worker.hear() == Progress("cold", None, 0, None, "queued")
        gate.opened.set()
        assert isinstance(worker.hear(), Loaded)


def test_a_heartbeat_repeats_what_was_last_reported(tmp_path: Path) -> None:
    fetching = Progress("cold", "f", 5, 9, "fetching")

    async def report_once(_backend: FunctionBackend, _request: Load, report: Any) -> Loaded:
        report(fetching)
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    limits = Limits(heartbeat_seconds=0.01)
    with talking(tmp_path, report_once, limits) as worker:
        worker.say(load("cold"))
        assert worker.hear().state == "queued"
        assert [worker.hear() for _ in range(4)] == [fetching] * 4


def test_progress_of_one_file_is_thinned_out_but_no_state_is_lost(tmp_path: Path) -> None:
    async def report_much(backend: FunctionBackend, request: Load, report: Any) -> Loaded:
        for file in ("a", "b"):
            for done in range(1000):
                report(Progress("cold", file, done, 1000, "fetching"))
            report(Progress("cold", file, 1000, 1000, "verifying"))
        return backend.opened(request.source)

    with talking(tmp_path, report_much) as worker:
        worker.say(load("cold"))
        heard = []
        while isinstance(message := worker.hear(), Progress):
            heard.append((message.file, message.state))
    states = [(None, "queued"), *((f, s) for f in "ab" for s in ("fetching", "verifying"))]
    assert list(dict.fromkeys(heard)) == states
    assert len(heard) < 100


def test_progress_after_the_answer_reaches_nobody(tmp_path: Path) -> None:
    late: list[Any] = []

    async def keep_reporting(backend: FunctionBackend, request: Load, report: Any) -> Loaded:
        late.append(report)
        for each in late:
            each(Progress(request.source.shown, None, 0, None, "done"))
        return backend.opened(request.source)

    with talking(tmp_path, keep_reporting) as worker:
        for source in ("cold/1", "cold/2"):
            worker.say(load(source))
            assert [worker.hear().state, worker.hear().state] == ["queued", "done"]
            assert worker.hear().source == source


def test_errors_are_answers_and_the_conversation_goes_on(server: Serving) -> None:
    with RawWorker(server.path) as worker:
        worker.greet()
        not_found = worker.ask(load("cold"))
        assert (type(not_found.error), not_found.own_fault) == (NotFound, False)
        invalid = worker.ask(b'{"type": "load", "source": "hot", "filenames": ["../x"]}')
        assert (type(invalid.error), invalid.own_fault) == (InvalidSource, False)
        assert isinstance(worker.ask(load("hot")), Loaded)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (RuntimeError("secret"), "CraftcacheError", False),
        (OSError(errno.EIO, "secret"), "CraftcacheError", False),
        (OSError(errno.EMFILE, "Too many open files"), "Unavailable", True),
        (CraftcacheError("we are to blame"), "CraftcacheError", False),
    ],
)
def test_what_nobody_asked_for_is_the_daemons_own_fault(
    tmp_path: Path, error: Exception, code: str, retryable: bool
) -> None:
    async def fail(_backend: FunctionBackend, _request: Load, _report: Any) -> Loaded:
        raise error

    with talking(tmp_path, fail) as worker:
        problem = worker.ask(load("cold"))
    assert problem.own_fault
    assert (problem.error.code, problem.error.retryable) == (code, retryable)
    assert "secret" not in str(problem.error)


def test_an_answer_that_cannot_be_sent_is_the_daemons_own_fault(tmp_path: Path) -> None:
    async def say_too_much(backend: FunctionBackend, request: Load, _report: Any) -> Loaded:
        loaded = backend.opened(request.source)
        loaded.files[0].info = file_info("n" * MAX_MESSAGE)
        return loaded

    before = len(os.listdir("/proc/self/fd"))
    with talking(tmp_path, say_too_much) as worker:
        assert worker.ask(load("cold")).own_fault
        assert worker.descriptors == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_answer_that_is_given_up_leaves_no_open_files(tmp_path: Path) -> None:
    opened = FunctionBackend(tmp_path).opened("hot")
    descriptors = opened.descriptors
    del opened
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_backend_that_cancels_itself_ends_the_connection(tmp_path: Path) -> None:
    async def give_up(_backend: FunctionBackend, _request: Load, _report: Any) -> Loaded:
        raise asyncio.CancelledError

    with talking(tmp_path, give_up) as worker:
        assert worker.ask(load("cold")) is None


def test_of_several_warms_in_one_message_each_has_its_result(server: Serving) -> None:
    with RawWorker(server.path) as worker:
        worker.greet()
        worker.say(b'{"type": "warm", "sources": ["hot", "cold"], "filenames": []}')
        packets = iter(lambda: json.loads(worker.sock.recv(MAX_MESSAGE)), None)
        answer = next(each for each in packets if each["type"] != "progress")
    assert answer["type"] == "warmed"
    done, failed = answer["results"]
    assert done["revision"] == "r1"
    assert failed["problem"]["code"] == "NotFound"


def test_the_backend_is_told_who_asks(server: Serving) -> None:
    with RawWorker(server.path) as worker:
        worker.greet()
        report = worker.ask(Status())
    assert report == status(pid=os.getpid(), models=os.getuid())


# --- Versions ---


def test_a_request_in_a_newer_version_is_dropped_and_its_repetition_answered(
    server: Serving,
) -> None:
    with RawWorker(server.path) as worker:
        worker.say(Hello(Versions(1, 2)), b'{"type": "load", "in": "some later form"}')
        assert worker.hear() == Hello()
        assert isinstance(worker.ask(load("hot")), Loaded)


def test_a_client_without_a_common_version_is_told_so(server: Serving) -> None:
    with RawWorker(server.path) as worker:
        worker.say(Hello(Versions(2, 9)))
        assert worker.hear() == Hello()
        problem = worker.hear()
        assert type(problem.error) is ProtocolMismatch
        assert worker.hear() is None


# --- Limits ---


def test_so_many_requests_are_worked_on_but_hits_are_served(tmp_path: Path) -> None:
    gate = Gate()
    limits = Limits(requests=1)
    with (
        serving(tmp_path, FunctionBackend(tmp_path, cold=gate), limits) as running,
        RawWorker(running.path) as one,
        RawWorker(running.path) as two,
    ):
        one.greet()
        two.greet()
        one.say(load("cold/1"))
        assert gate.begun.acquire(timeout=SECONDS)
        refusal = two.ask(load("cold/2"))
        assert refusal.own_fault
        assert refusal.error.retryable
        assert isinstance(two.ask(load("hot")), Loaded)
        gate.opened.set()
        assert isinstance(one.hear_answer(), Loaded)
        assert isinstance(two.ask(load("cold/2")), Loaded)


def test_the_default_limits_fit_into_what_the_process_may_open() -> None:
    limits = Limits()
    assert limits.unread_per_uid < limits.connections


# --- The end of a conversation ---


def test_a_worker_that_goes_away_cancels_its_request_alone(tmp_path: Path) -> None:
    gate = Gate()
    with (
        serving(tmp_path, FunctionBackend(tmp_path, cold=gate)) as running,
        RawWorker(running.path) as staying,
    ):
        staying.greet()
        with RawWorker(running.path) as leaving:
            leaving.greet()
            leaving.say(load("cold/1"))
            assert gate.begun.acquire(timeout=SECONDS)
        assert gate.cancelled.acquire(timeout=SECONDS)
        assert running.statistics() == WorkerStatistics(connections=1, requests=0)
        assert isinstance(staying.ask(load("hot")), Loaded)


def test_half_a_close_is_a_withdrawal_too(tmp_path: Path) -> None:
    gate = Gate()
    with talking(tmp_path, gate) as worker:
        worker.say(load("cold"))
        assert gate.begun.acquire(timeout=SECONDS)
        worker.sock.shutdown(socket.SHUT_WR)
        assert gate.cancelled.acquire(timeout=SECONDS)
        assert worker.hear_answer() is None


def test_a_drain_lets_running_requests_finish_and_accepts_no_more(tmp_path: Path) -> None:
    gate = Gate()
    backend = FunctionBackend(tmp_path, cold=gate)
    with (
        serving(tmp_path, backend) as running,
        ThreadPoolExecutor(1) as thread,
        RawWorker(running.path) as busy,
        RawWorker(running.path) as idle,
    ):
        busy.greet()
        idle.greet()
        busy.say(load("cold"))
        assert gate.begun.acquire(timeout=SECONDS)
        draining = thread.submit(running.drain, SECONDS)
        assert idle.hear() is None
        with RawWorker(running.path) as late:  # the kernel still takes connections
            late.say(Hello(), load("hot"))
            gate.opened.set()
            assert isinstance(busy.hear_answer(), Loaded)
            assert busy.hear() is None
            draining.result(SECONDS)
            assert running.statistics() == WorkerStatistics(connections=0, requests=0)
            late.sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                late.hear()


def test_a_drain_cuts_off_what_takes_too_long(tmp_path: Path) -> None:
    gate = Gate()
    with (
        serving(tmp_path, FunctionBackend(tmp_path, cold=gate)) as running,
        RawWorker(running.path) as worker,
    ):
        worker.greet()
        worker.say(load("cold"))
        assert gate.begun.acquire(timeout=SECONDS)
        running.drain(0)
        assert gate.cancelled.acquire(timeout=SECONDS)
        assert worker.hear_answer() is None


async def test_no_call_of_the_server_blocks_the_event_loop(tmp_path: Path) -> None:
    backend = FunctionBackend(tmp_path)
    loop = asyncio.get_running_loop()
    with bind_worker_socket(tmp_path) as listener, blockbuster_ctx("craftcached"):
        server = WorkerServer(listener, backend)
        server.start()

        async def heard(worker: socket.socket) -> str:
            return str(json.loads(await loop.sock_recv(worker, 70_000))["type"])

        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as worker:
            worker.setblocking(False)
            await loop.sock_connect(worker, os.fspath(tmp_path / "worker" / "handles.sock"))
            for request in (
                Hello(),
                load("hot"),
                load("cold"),
                Warm(parse("hot")),
                Resolve(parse("a"), "b"),
            ):
                await loop.sock_sendall(worker, encode(request))
                while (kind := await heard(worker)) == "progress":
                    pass
                assert (kind == "problem") == (request == load("cold"))
        await server.drain(0)
