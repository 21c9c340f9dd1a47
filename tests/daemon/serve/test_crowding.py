"""More workers than there is room for: the idle make way, the busy stay, the rest wait."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.daemon.transport import Cancellation, DaemonUnavailable, Deadlines, WorkerSocket
from craftcache.daemon.transport.worker_socket import MAX_IDLE
from craftcache.wire import DaemonStatus, Hello, Loaded, Problem, Status, encode
from craftcached.serve.connection import WorkerConnection
from craftcached.serve.connection_table import ConnectionTable
from craftcached.serve.peers import Peer
from craftcached.serve.worker import Limits
from tests.support.sockets import FunctionBackend, RawWorker, load, serving
from tests.support.sockets.serving import SECONDS
from tests.support.worker_client import NoticingWithdrawal, ask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from craftcache.wire import Load
    from tests.support.sockets import Serving

BUSY = Deadlines(unasked=0.01, silence=SECONDS, restart=SECONDS, busy=SECONDS, pause=0.001)
"""Of a worker that has all the time for its turn."""


class Gate:
    """A cold load that begins and ends when the test says; counts those that have begun."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.opened = threading.Event()
        self.count = 0

    async def __call__(self, backend: FunctionBackend, request: Load, _report: Any) -> Loaded:
        self.count += 1
        self.begun.release()
        while not await asyncio.to_thread(self.opened.wait, SECONDS):
            pass
        return backend.opened(request.source)

    def wait_begun(self) -> None:
        assert self.begun.acquire(timeout=SECONDS)


@contextlib.contextmanager
def greeted(running: Serving, count: int) -> Iterator[list[RawWorker]]:
    """Idle workers, in the order in which they became so."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(RawWorker(running.path)) for _ in range(count)]
        for worker in workers:
            worker.greet()
        yield workers


def crowded(directory: Path, gate: Gate, connections: int, **more: int) -> Any:
    limits = Limits(connections_per_uid=connections, **more)
    return serving(directory, FunctionBackend(directory, cold=gate), limits)


def test_the_longest_idle_connection_makes_way(tmp_path: Path) -> None:
    with crowded(tmp_path, Gate(), 2) as running, greeted(running, 2) as (first, second):
        assert isinstance(first.ask(load("hot")), Loaded)  # and so second is idle for longer
        with RawWorker(running.path) as third:
            third.greet()
            assert second.hear() is None
            assert isinstance(first.ask(load("hot")), Loaded)
            assert isinstance(third.ask(load("hot")), Loaded)


def test_who_has_spoken_and_was_not_read_yet_does_not_make_way() -> None:
    """Its request would look to the worker as one that the daemon ended of."""
    table = ConnectionTable(Limits())
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        user = table.user(os.getuid())
        for theirs, ours in pairs:
            stack.enter_context(theirs)
            stack.enter_context(ours)
            user.idle[WorkerConnection(ours, Peer.of(ours), user)] = 0.0
        first, second = user.idle
        assert table.longest_idle(user) is first
        pairs[0][0].send(b"a request")
        assert table.longest_idle(user) is second
        pairs[1][0].send(b"another")
        assert table.longest_idle(user) is None


def test_all_users_together_have_only_so_many(tmp_path: Path) -> None:
    limits = Limits(connections=2)
    with (
        serving(tmp_path, FunctionBackend(tmp_path), limits) as running,
        greeted(running, 2) as (first, _second),
        RawWorker(running.path) as third,
    ):
        third.greet()
        assert first.hear() is None
        assert running.statistics().connections == 2


def test_a_connection_with_a_request_under_way_does_not_make_way(tmp_path: Path) -> None:
    gate = Gate()
    with crowded(tmp_path, gate, 1) as running, greeted(running, 1) as (busy,):
        busy.say(load("cold"))
        gate.wait_begun()
        with RawWorker(running.path) as extra:
            extra.greet()
            refusal = extra.ask(load("cold/2"))
            assert isinstance(refusal, Problem)
            assert refusal.own_fault
            assert refusal.error.retryable
            assert refusal.error.retry_after
            assert extra.hear() is None
        gate.opened.set()
        assert isinstance(busy.hear_answer(), Loaded)


@pytest.mark.parametrize("request_", [load("hot"), Status()])
def test_what_needs_no_work_always_gets_in(tmp_path: Path, request_: Any) -> None:
    gate = Gate()
    with crowded(tmp_path, gate, 1) as running, greeted(running, 1) as (busy,):
        busy.say(load("cold"))
        gate.wait_begun()
        with RawWorker(running.path) as extra:
            extra.greet()
            assert isinstance(extra.ask(request_), Loaded | DaemonStatus)
            assert extra.hear() is None  # it was let in for one
        gate.opened.set()
        assert isinstance(busy.hear_answer(), Loaded)


def test_beyond_the_extra_ones_a_worker_is_told_to_come_back(tmp_path: Path) -> None:
    gate = Gate()
    with crowded(tmp_path, gate, 1, extra=0) as running, greeted(running, 1) as (busy,):
        busy.say(load("cold"))
        gate.wait_begun()
        with RawWorker(running.path) as newcomer:
            assert newcomer.hear() == Hello()
            assert newcomer.hear().error.retry_after
            assert newcomer.hear() is None
        gate.opened.set()


def test_an_answer_that_was_not_received_yet_is_not_taken_away(tmp_path: Path) -> None:
    with crowded(tmp_path, Gate(), 1) as running, greeted(running, 1) as (slow,):
        slow.say(load("hot"))
        slow.wait_answered()
        with RawWorker(running.path) as newcomer:
            newcomer.greet()
            assert isinstance(newcomer.ask(load("hot")), Loaded)
        assert isinstance(slow.hear_answer(), Loaded)


def test_what_is_idle_for_long_is_given_up_though_nobody_wants_its_place(tmp_path: Path) -> None:
    limits = Limits(idle_seconds=0.01)
    with (
        serving(tmp_path, FunctionBackend(tmp_path), limits) as running,
        greeted(running, 1) as (idle,),
    ):
        assert idle.hear() is None


def test_a_worker_waits_for_its_turn(tmp_path: Path) -> None:
    gate, waiting = Gate(), NoticingWithdrawal()
    with (
        crowded(tmp_path, gate, 8, requests=2) as running,
        greeted(running, 1) as (busy,),
        ThreadPoolExecutor(1) as pool,
    ):
        busy.say(load("cold/1"))
        gate.wait_begun()
        worker = WorkerSocket(running.path, deadlines=BUSY)
        turn = pool.submit(
            ask, worker, load("cold/2"), patience=lambda: SECONDS, cancellation=waiting
        )
        assert waiting.paused.wait(SECONDS)
        gate.opened.set()
        assert isinstance(busy.hear_answer(), Loaded)
        with turn.result(SECONDS):
            pass
        worker.close()


def test_who_has_a_verified_copy_does_not_wait_for_a_turn(tmp_path: Path) -> None:
    gate = Gate()
    with crowded(tmp_path, gate, 8, requests=2) as running, greeted(running, 1) as (busy,):
        busy.say(load("cold/1"))
        gate.wait_begun()
        worker = WorkerSocket(running.path, deadlines=BUSY)
        with pytest.raises(DaemonUnavailable, match="too many requests"):
            ask(worker, load("cold/2"), patience=lambda: 0.0)
        gate.opened.set()
        worker.close()


def test_a_turn_can_be_called_off(tmp_path: Path) -> None:
    gate, cancellation = Gate(), Cancellation()
    with (
        crowded(tmp_path, gate, 8, requests=2) as running,
        greeted(running, 1) as (busy,),
        ThreadPoolExecutor(1) as pool,
    ):
        busy.say(load("cold/1"))
        gate.wait_begun()
        worker = WorkerSocket(running.path, deadlines=BUSY)
        turn = pool.submit(
            ask, worker, load("cold/2"), patience=lambda: SECONDS, cancellation=cancellation
        )
        cancellation.withdraw()
        assert type(turn.exception(SECONDS)).__name__ == "Cancelled"
        gate.opened.set()
        worker.close()


def test_a_process_keeps_few_idle_connections(tmp_path: Path) -> None:
    gate = Gate()
    threads = MAX_IDLE + 4
    with crowded(tmp_path, gate, 64) as running, ThreadPoolExecutor(threads) as pool:
        worker = WorkerSocket(running.path)
        loads = [
            pool.submit(ask, worker, load(f"cold/{number}"), patience=lambda: SECONDS)
            for number in range(threads)
        ]
        for _ in loads:
            gate.wait_begun()
        assert running.statistics().connections == threads
        gate.opened.set()
        for each in loads:
            each.result(SECONDS).close()
        running.settle()
        assert running.statistics().connections <= MAX_IDLE
        worker.close()


def test_a_kept_connection_that_was_given_up_costs_a_request_nothing(tmp_path: Path) -> None:
    with crowded(tmp_path, Gate(), 1) as running:
        worker = WorkerSocket(running.path)
        ask(worker, load("hot"), patience=lambda: SECONDS).close()
        with greeted(running, 1):  # takes the place of the connection that was kept
            pass
        ask(worker, load("hot"), patience=lambda: SECONDS).close()
        worker.close()


def test_a_thousand_cold_workers_of_one_user_are_all_heard(tmp_path: Path) -> None:
    gate = Gate()
    count = 1000
    limits = Limits(connections=2 * count, connections_per_uid=2 * count)
    with serving(tmp_path, FunctionBackend(tmp_path, cold=gate), limits):
        path = tmp_path / "worker" / "handles.sock"
        sockets = []
        try:
            for _ in range(count):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                sockets.append(sock)
                sock.settimeout(SECONDS)
                sock.connect(str(path))
                sock.send(encode(Hello()))
                sock.send(encode(load("cold")))
            for _ in range(count):
                gate.wait_begun()
            gate.opened.set()
        finally:
            for sock in sockets:
                sock.close()
    assert gate.count == count
