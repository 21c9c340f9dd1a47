"""How long the worker's end waits for a daemon that is absent, silent or restarted."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.daemon.transport import DaemonUnavailable, Deadlines, WorkerSocket
from craftcache.errors import Unavailable
from craftcache.wire import Hello, Load, Problem, Progress, Status, encode
from tests.support.sockets import FunctionBackend, RawWorker, ScriptedDaemon, load, serving, status
from tests.support.sockets.scripted import answer, hang_up, hear_request
from tests.support.sockets.serving import SECONDS
from tests.support.worker_client import ENDLESS, QUEUED, SHORT, NoticingWithdrawal, ask

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.wire import Loaded


def test_an_absent_daemon_is_absent_at_once(tmp_path: Path) -> None:
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gone:
        gone.bind(os.fspath(stale))
    plain = tmp_path / "plain"
    plain.touch()
    for path in (tmp_path / "none", stale, plain, plain / "x", tmp_path / ("x" * 200)):
        with pytest.raises(DaemonUnavailable, match=path.name):
            ask(WorkerSocket(path, deadlines=ENDLESS), Status())


def test_a_daemon_of_another_kind_is_absent(tmp_path: Path) -> None:
    path = tmp_path / "stream.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(os.fspath(path))
        stream.listen()
        with pytest.raises(DaemonUnavailable):
            ask(WorkerSocket(path, deadlines=ENDLESS), Status())


def listening(path: Path, backlog: int = 8) -> socket.socket:
    """A daemon that is there and does nothing."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(os.fspath(path))
    listener.listen(backlog)
    return listener


def test_a_silent_daemon_costs_what_the_caller_is_patient(tmp_path: Path) -> None:
    asked: list[float] = []

    def patience() -> float:
        asked.append(1)
        return 0.02

    with listening(tmp_path / "s"), pytest.raises(DaemonUnavailable):
        ask(WorkerSocket(tmp_path / "s", deadlines=SHORT), Status(), patience=patience)
    assert asked == [1]


def test_a_daemon_with_no_room_for_a_connection_is_silent(tmp_path: Path) -> None:
    with listening(tmp_path / "s", backlog=0), RawWorker(tmp_path / "s"):
        worker = WorkerSocket(tmp_path / "s", deadlines=SHORT)
        with pytest.raises(DaemonUnavailable):
            ask(worker, Status(), patience=lambda: 0.02)


def test_room_for_a_connection_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "s"
    noticed = NoticingWithdrawal()
    listener = listening(path, backlog=0)
    with listener, ThreadPoolExecutor(1) as thread, RawWorker(path):
        asking = thread.submit(
            ask, WorkerSocket(path, deadlines=ENDLESS), Status(), cancellation=noticed
        )
        assert noticed.paused.wait(SECONDS)
        listener.accept()[0].close()  # the raw worker's
        connection, _ = listener.accept()
        with connection:
            hear_request(connection)
            connection.send(encode(Hello()))
            connection.send(encode(status()))
            assert asking.result(SECONDS) == status()


def test_a_patient_caller_is_answered_by_a_slow_daemon(tmp_path: Path) -> None:
    asked = threading.Event()

    def patience() -> float:
        asked.set()
        return SECONDS

    def slowly(daemon: ScriptedDaemon, connection: socket.socket) -> None:
        assert asked.wait(SECONDS)
        answer(status())(daemon, connection)

    with ScriptedDaemon(tmp_path / "s", slowly):
        worker = WorkerSocket(tmp_path / "s", deadlines=SHORT)
        assert ask(worker, Status(), patience=patience) == status()
        worker.close()


def test_a_hello_is_no_answer(tmp_path: Path) -> None:
    with ScriptedDaemon(tmp_path / "s", answer()):
        worker = WorkerSocket(tmp_path / "s", deadlines=SHORT)
        with pytest.raises(DaemonUnavailable):
            ask(worker, load("org/name"), patience=lambda: 0.02)


def test_a_daemon_that_began_to_answer_has_its_own_deadline(tmp_path: Path) -> None:
    deadlines = Deadlines(unasked=SECONDS, silence=0.02)
    heard: list[Progress] = []
    with ScriptedDaemon(tmp_path / "s", answer(QUEUED)):
        worker = WorkerSocket(tmp_path / "s", deadlines=deadlines)
        with pytest.raises(DaemonUnavailable):
            ask(worker, load("org/name"), on_progress=heard.append)
    assert heard == [QUEUED]


def test_a_kept_connection_that_was_closed_is_replaced(tmp_path: Path) -> None:
    worker = WorkerSocket(tmp_path / "worker" / "handles.sock", deadlines=ENDLESS)
    for _ in range(2):
        with serving(tmp_path, FunctionBackend(tmp_path)):
            ask(worker, load("hot")).close()
    with pytest.raises(DaemonUnavailable):
        ask(worker, load("hot"))


def test_a_request_survives_a_restart_of_the_daemon(tmp_path: Path) -> None:
    begun = threading.Event()

    async def hang(_backend: FunctionBackend, _request: Load, _report: Any) -> Loaded:
        begun.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def serve(backend: FunctionBackend, request: Load, _report: Any) -> Loaded:
        return backend.opened(request.source)

    noticed = NoticingWithdrawal()
    with ThreadPoolExecutor(1) as thread, ExitStack() as first:
        running = first.enter_context(serving(tmp_path, FunctionBackend(tmp_path, cold=hang)))
        worker = WorkerSocket(running.path, deadlines=ENDLESS)
        asking = thread.submit(ask, worker, load("cold"), cancellation=noticed)
        assert begun.wait(SECONDS)
        first.close()
        running.path.unlink()
        assert noticed.paused.wait(SECONDS)
        with serving(tmp_path, FunctionBackend(tmp_path, cold=serve)):
            with asking.result(SECONDS) as reply:
                assert reply.source == "cold"
            worker.close()


def test_a_connection_that_ends_before_the_answer_is_tried_again(tmp_path: Path) -> None:
    def hang_up_later(_daemon: ScriptedDaemon, connection: socket.socket) -> None:
        hear_request(connection)
        connection.send(encode(Hello()))
        connection.send(encode(QUEUED))

    with ScriptedDaemon(tmp_path / "s", hang_up, hang_up_later, answer(status())):
        worker = WorkerSocket(tmp_path / "s", deadlines=ENDLESS)
        assert ask(worker, Status()) == status()
        worker.close()


def test_a_daemon_that_dies_of_the_request_is_broken(tmp_path: Path) -> None:
    with ScriptedDaemon(tmp_path / "s", *[hang_up] * 5):
        worker = WorkerSocket(tmp_path / "s", deadlines=ENDLESS)
        with pytest.raises(DaemonUnavailable):
            ask(worker, load("org/name"))


def test_a_daemon_that_does_not_come_back_is_broken(tmp_path: Path) -> None:
    def vanish(daemon: ScriptedDaemon, connection: socket.socket) -> None:
        hear_request(connection)
        daemon.vanish()

    with ScriptedDaemon(tmp_path / "s", vanish):
        worker = WorkerSocket(tmp_path / "s", deadlines=SHORT)
        with pytest.raises(DaemonUnavailable):
            ask(worker, load("org/name"), patience=lambda: SECONDS)


def test_what_a_daemon_said_before_it_closed_is_heard(tmp_path: Path) -> None:
    def refuse(_daemon: ScriptedDaemon, connection: socket.socket) -> None:
        connection.send(encode(Hello()))
        connection.send(encode(Problem(Unavailable("too many"), own_fault=True)))

    with ScriptedDaemon(tmp_path / "s", refuse):
        worker = WorkerSocket(tmp_path / "s", deadlines=ENDLESS)
        with pytest.raises(DaemonUnavailable) as caught:
            ask(worker, Status())
    assert "too many" in str(caught.value)
