"""Workers that break the rules, and what the others notice of it: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
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
    from pathlib import Path

    from tests.support.sockets import Serving

DESCRIPTORS = 3
"""In the answer to a load of the test backend."""


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
