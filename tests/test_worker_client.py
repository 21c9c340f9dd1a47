"""The worker's end of the socket: answers, descriptors, patience, restarts, threads and forks."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from craftcache import transport
from craftcache.errors import CraftcacheError, NotFound, ProtocolMismatch, Unavailable
from craftcache.transport import (
    DaemonAbsent,
    DaemonBroken,
    DaemonSilent,
    Deadlines,
    Withdrawal,
    Withdrawn,
    WorkerSocket,
)
from craftcache.wire import (
    Hello,
    Load,
    Loaded,
    Model,
    Models,
    ModelsPage,
    Problem,
    Progress,
    Resolve,
    Resolved,
    ServedFile,
    Status,
    StatusReport,
    Versions,
    Warm,
    encode,
)
from socketkit import FunctionBackend, RawWorker, ScriptedDaemon, serving
from socketkit.backend import BLOB, INDEX
from socketkit.scripted import answer, hang_up, hear_request, wait_closed
from socketkit.serving import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from craftcache.transport import Reply
    from craftcached.serve.backend import Opened
    from socketkit import Serving

SHORT = Deadlines(unasked=0.01, silence=0.05, restart=0.05, pause=0.001)
"""Deadlines that a test can wait for."""

ENDLESS = Deadlines(unasked=SECONDS, silence=SECONDS, restart=SECONDS, pause=0.001)
"""Deadlines that no test reaches."""

QUEUED = Progress("org/name", None, 0, None, "queued")


def never() -> float:
    pytest.fail("the caller was asked for its patience")


def ask(worker: WorkerSocket, request: Any, **options: Any) -> Reply[Any]:
    return worker.ask(request, **{"patience": never} | options)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path, FunctionBackend(tmp_path)) as running:
        yield running


@pytest.fixture
def worker(server: Serving) -> Iterator[WorkerSocket]:
    worker = WorkerSocket(server.path, deadlines=ENDLESS)
    yield worker
    worker.close()


@pytest.fixture
def no_descriptor_leaks() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


# --- Answers ---


def test_a_load_brings_open_files_in_order_for_reading_only(worker: WorkerSocket) -> None:
    with ask(worker, Load("hot")) as reply:
        assert reply.answer.source == "hot"
        descriptors = reply.take()
    try:
        contents = [os.read(descriptor, 100) for descriptor in descriptors]
        assert contents == [BLOB, INDEX, BLOB]
        for descriptor in descriptors:
            assert not os.get_inheritable(descriptor)
            assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_two_loads_share_no_file_offset(worker: WorkerSocket) -> None:
    with ask(worker, Load("hot")) as one, ask(worker, Load("hot")) as other:
        for reply in (one, other):
            blob, *others = reply.take()
            assert os.read(blob, 100) == BLOB
            for descriptor in (blob, *others):
                os.close(descriptor)


def test_descriptors_that_nobody_takes_are_closed(
    no_descriptor_leaks: None, worker: WorkerSocket
) -> None:
    with ask(worker, Load("hot")) as reply:
        assert reply.descriptor_count == 3
    ask(worker, Load("hot")).close()
    assert ask(worker, Load("hot")).answer.source == "hot"  # and dropped without a close
    worker.close()


def test_every_request_has_its_answer(tmp_path: Path) -> None:
    file = ServedFile("f", "0" * 64, 1, "o", 1.0, has_index=False)
    models = [Model(f"org/{i:04}", "r", (file,) * 8) for i in range(100)]
    with serving(tmp_path, FunctionBackend(tmp_path, models=models)) as running:
        worker = WorkerSocket(running.path, deadlines=ENDLESS)
        assert ask(worker, Resolve("org/name", "f")).answer == Resolved("models--org/name/f", 1, 2)
        status = ask(worker, Status()).answer
        assert status == StatusReport({"pid": os.getpid(), "uid": os.getuid()})
        first, second = ask(worker, Warm(("hot/a", "cold/b"))).answer.results
        assert (first.revision, first.error) == ("r1", None)
        assert type(second.error) is NotFound
        page: ModelsPage = ask(worker, Models()).answer
        listed = [*page.models]
        while page.next:
            page = ask(worker, Models(page.next)).answer
            listed += page.models
        assert listed == models


def test_one_connection_serves_one_thread(server: Serving, worker: WorkerSocket) -> None:
    for _ in range(5):
        ask(worker, Load("hot")).close()
        with pytest.raises(NotFound):
            ask(worker, Load("cold"))
    assert server.statistics().connections == 1


def test_threads_do_not_wait_for_each_other(tmp_path: Path) -> None:
    both_here = threading.Barrier(2)

    async def meet(backend: FunctionBackend, request: Load, _report: Any) -> Opened:
        await asyncio.to_thread(both_here.wait, SECONDS)
        return backend.opened(request.source)

    with serving(tmp_path, FunctionBackend(tmp_path, cold=meet)) as running:
        worker = WorkerSocket(running.path, deadlines=ENDLESS)
        with ThreadPoolExecutor(2) as threads:
            replies = threads.map(lambda name: ask(worker, Load(name)), ["cold/a", "cold/b"])
            assert [reply.answer.source for reply in replies] == ["cold/a", "cold/b"]


def test_many_threads_each_get_their_own_answer(worker: WorkerSocket) -> None:
    def load(i: int) -> tuple[str, list[bytes]]:
        reply = ask(worker, Load(f"hot/{i}"))
        contents = []
        for descriptor in reply.take():
            with os.fdopen(descriptor, "rb") as file:
                contents.append(file.read())
        return reply.answer.source, contents

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(load, range(400)))
    assert answers == [(f"hot/{i}", [BLOB, INDEX, BLOB]) for i in range(400)]


def test_progress_is_reported_as_it_comes(tmp_path: Path) -> None:
    half = Progress("cold", "state_dict.bin", 1, 2, "fetching")

    async def fetch(backend: FunctionBackend, request: Load, report: Any) -> Opened:
        report(half)
        return backend.opened(request.source)

    heard: list[Progress] = []
    with serving(tmp_path, FunctionBackend(tmp_path, cold=fetch)) as running:
        worker = WorkerSocket(running.path, deadlines=ENDLESS)
        with ask(worker, Load("cold"), on_progress=heard.append) as reply:
            assert reply.descriptor_count == 3
    assert heard == [Progress("cold", None, 0, None, "queued"), half]


def test_the_daemons_own_fault_is_told_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_backend: FunctionBackend, _request: Load, _report: Any) -> Opened:
        raise RuntimeError("a secret of the daemon")

    with serving(tmp_path, FunctionBackend(tmp_path, cold=fail)) as running:
        worker = WorkerSocket(running.path, deadlines=ENDLESS)
        with pytest.raises(DaemonBroken) as caught:
            ask(worker, Load("cold"))
    assert type(caught.value.error) is CraftcacheError
    assert "secret" not in str(caught.value.error)
    assert "a secret of the daemon" in caplog.text


# --- Nobody there, or nobody who answers ---


def test_an_absent_daemon_is_absent_at_once(tmp_path: Path) -> None:
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gone:
        gone.bind(os.fspath(stale))
    plain = tmp_path / "plain"
    plain.touch()
    for path in (tmp_path / "none", stale, plain, plain / "x", tmp_path / ("x" * 200)):
        with pytest.raises(DaemonAbsent, match=path.name):
            ask(WorkerSocket(path, deadlines=ENDLESS), Status())


def test_a_daemon_of_another_kind_is_absent(tmp_path: Path) -> None:
    path = tmp_path / "stream.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(os.fspath(path))
        stream.listen()
        with pytest.raises(DaemonAbsent):
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

    with listening(tmp_path / "s"), pytest.raises(DaemonSilent):
        ask(WorkerSocket(tmp_path / "s", deadlines=SHORT), Status(), patience=patience)
    assert asked == [1]


def test_a_daemon_with_no_room_for_a_connection_is_silent(tmp_path: Path) -> None:
    with listening(tmp_path / "s", backlog=0), RawWorker(tmp_path / "s"):
        worker = WorkerSocket(tmp_path / "s", deadlines=SHORT)
        with pytest.raises(DaemonSilent):
            ask(worker, Status(), patience=lambda: 0.02)


def test_room_for_a_connection_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "s"
    noticed = NoticingWithdrawal()
    listener = listening(path, backlog=0)
    with listener, ThreadPoolExecutor(1) as thread, RawWorker(path):
        asking = thread.submit(
            ask, WorkerSocket(path, deadlines=ENDLESS), Status(), withdrawal=noticed
        )
        assert noticed.paused.wait(SECONDS)
        listener.accept()[0].close()  # the raw worker's
        connection, _ = listener.accept()
        with connection:
            hear_request(connection)
            connection.send(encode(Hello()))
            connection.send(encode(StatusReport({})))
            assert asking.result(SECONDS).answer == StatusReport({})


def test_a_patient_caller_is_answered_by_a_slow_daemon(tmp_path: Path) -> None:
    asked = threading.Event()

    def patience() -> float:
        asked.set()
        return SECONDS

    def slowly(daemon: ScriptedDaemon, connection: socket.socket) -> None:
        assert asked.wait(SECONDS)
        answer(StatusReport({}))(daemon, connection)

    with ScriptedDaemon(tmp_path / "s", slowly):
        worker = WorkerSocket(tmp_path / "s", deadlines=SHORT)
        assert ask(worker, Status(), patience=patience).answer == StatusReport({})
        worker.close()


def test_a_hello_is_no_answer(tmp_path: Path) -> None:
    with ScriptedDaemon(tmp_path / "s", answer()):
        worker = WorkerSocket(tmp_path / "s", deadlines=SHORT)
        with pytest.raises(DaemonSilent):
            ask(worker, Load("org/name"), patience=lambda: 0.02)


def test_a_daemon_that_began_to_answer_has_its_own_deadline(tmp_path: Path) -> None:
    deadlines = Deadlines(unasked=SECONDS, silence=0.02)
    heard: list[Progress] = []
    with ScriptedDaemon(tmp_path / "s", answer(QUEUED)):
        worker = WorkerSocket(tmp_path / "s", deadlines=deadlines)
        with pytest.raises(DaemonSilent):
            ask(worker, Load("org/name"), on_progress=heard.append)
    assert heard == [QUEUED]


# --- A daemon that goes away ---


class NoticingWithdrawal(Withdrawal):
    """Tells the test when a request pauses before another attempt."""

    __slots__ = ("paused",)

    def __init__(self) -> None:
        super().__init__()
        self.paused = threading.Event()

    def pause(self, seconds: float) -> None:
        self.paused.set()
        super().pause(seconds)


def test_a_kept_connection_that_was_closed_is_replaced(tmp_path: Path) -> None:
    worker = WorkerSocket(tmp_path / "worker" / "handles.sock", deadlines=ENDLESS)
    for _ in range(2):
        with serving(tmp_path, FunctionBackend(tmp_path)):
            ask(worker, Load("hot")).close()
    with pytest.raises(DaemonAbsent):
        ask(worker, Load("hot"))


def test_a_request_survives_a_restart_of_the_daemon(tmp_path: Path) -> None:
    begun = threading.Event()

    async def hang(_backend: FunctionBackend, _request: Load, _report: Any) -> Opened:
        begun.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def serve(backend: FunctionBackend, request: Load, _report: Any) -> Opened:
        return backend.opened(request.source)

    noticed = NoticingWithdrawal()
    with ThreadPoolExecutor(1) as thread, ExitStack() as first:
        running = first.enter_context(serving(tmp_path, FunctionBackend(tmp_path, cold=hang)))
        worker = WorkerSocket(running.path, deadlines=ENDLESS)
        asking = thread.submit(ask, worker, Load("cold"), withdrawal=noticed)
        assert begun.wait(SECONDS)
        first.close()
        running.path.unlink()
        assert noticed.paused.wait(SECONDS)
        with serving(tmp_path, FunctionBackend(tmp_path, cold=serve)):
            with asking.result(SECONDS) as reply:
                assert reply.answer.source == "cold"
            worker.close()


def test_a_connection_that_ends_before_the_answer_is_tried_again(tmp_path: Path) -> None:
    def hang_up_later(_daemon: ScriptedDaemon, connection: socket.socket) -> None:
        hear_request(connection)
        connection.send(encode(Hello()))
        connection.send(encode(QUEUED))

    with ScriptedDaemon(tmp_path / "s", hang_up, hang_up_later, answer(StatusReport({}))):
        worker = WorkerSocket(tmp_path / "s", deadlines=ENDLESS)
        assert ask(worker, Status()).answer == StatusReport({})
        worker.close()


def test_a_daemon_that_dies_of_the_request_is_broken(tmp_path: Path) -> None:
    with ScriptedDaemon(tmp_path / "s", *[hang_up] * 5):
        worker = WorkerSocket(tmp_path / "s", deadlines=ENDLESS)
        with pytest.raises(DaemonBroken):
            ask(worker, Load("org/name"))


def test_a_daemon_that_does_not_come_back_is_broken(tmp_path: Path) -> None:
    def vanish(daemon: ScriptedDaemon, connection: socket.socket) -> None:
        hear_request(connection)
        daemon.vanish()

    with ScriptedDaemon(tmp_path / "s", vanish):
        worker = WorkerSocket(tmp_path / "s", deadlines=SHORT)
        with pytest.raises(DaemonBroken):
            ask(worker, Load("org/name"), patience=lambda: SECONDS)


def test_what_a_daemon_said_before_it_closed_is_heard(tmp_path: Path) -> None:
    def refuse(_daemon: ScriptedDaemon, connection: socket.socket) -> None:
        connection.send(encode(Hello()))
        connection.send(encode(Problem(Unavailable("too many"), own_fault=True)))

    with ScriptedDaemon(tmp_path / "s", refuse):
        worker = WorkerSocket(tmp_path / "s", deadlines=ENDLESS)
        with pytest.raises(DaemonBroken) as caught:
            ask(worker, Status())
    assert type(caught.value.error) is Unavailable
    assert caught.value.error.retryable


# --- A daemon that talks nonsense ---


@pytest.mark.parametrize(
    "messages",
    [
        (b"garbage",),
        (b'{"type": "stranger"}',),
        (encode(StatusReport({"x": "y" * 60_000})) + b" " * 6000,),
        (Hello(),),
        (Resolved("a", 1, 1),),
        (Loaded("a", "r", (ServedFile("f", "0" * 64, 1, "o", 1.0, has_index=False),)),),
        (Load("org/name"),),
    ],
    ids=["garbage", "stranger", "too large", "hello twice", "other answer", "no files", "request"],
)
def test_nonsense_is_a_broken_daemon(tmp_path: Path, messages: tuple[Any, ...]) -> None:
    with ScriptedDaemon(tmp_path / "s", answer(*messages)), pytest.raises(DaemonBroken):
        ask(WorkerSocket(tmp_path / "s", deadlines=ENDLESS), Status())


def test_an_answer_without_a_hello_is_nonsense(tmp_path: Path) -> None:
    def forget_hello(daemon: ScriptedDaemon, connection: socket.socket) -> None:
        connection.send(encode(StatusReport({})))
        wait_closed(daemon, connection)

    with ScriptedDaemon(tmp_path / "s", forget_hello), pytest.raises(DaemonBroken):
        ask(WorkerSocket(tmp_path / "s", deadlines=ENDLESS), Status())


@pytest.mark.parametrize("count", [1, 3, 40])
def test_descriptors_that_do_not_belong_are_closed(
    tmp_path: Path, count: int, no_descriptor_leaks: None
) -> None:
    def send_too_many(daemon: ScriptedDaemon, connection: socket.socket) -> None:
        connection.send(encode(Hello()))
        served = (ServedFile("f", "0" * 64, 1, "o", 1.0, has_index=True),)
        message = encode(Loaded("org/name", "r", served))
        socket.send_fds(connection, [message], [connection.fileno()] * count)
        wait_closed(daemon, connection)

    with ScriptedDaemon(tmp_path / "s", send_too_many), pytest.raises(DaemonBroken):
        ask(WorkerSocket(tmp_path / "s", deadlines=ENDLESS), Load("org/name"))


def test_no_common_version_is_a_mismatch(tmp_path: Path) -> None:
    def newer(daemon: ScriptedDaemon, connection: socket.socket) -> None:
        connection.send(encode(Hello(Versions(2, 3), "craftcache 9")))
        wait_closed(daemon, connection)

    with ScriptedDaemon(tmp_path / "s", newer), pytest.raises(ProtocolMismatch, match="2 to 3"):
        ask(WorkerSocket(tmp_path / "s", deadlines=ENDLESS), Status())


# --- Withdrawing ---


class Hanging:
    """A backend function that hangs, and tells when it began and when it was cancelled."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def __call__(self, _backend: FunctionBackend, _request: Load, report: Any) -> Opened:
        report(QUEUED)
        self.begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError


def test_a_withdrawal_ends_the_wait_on_both_sides(tmp_path: Path) -> None:
    hanging, withdrawal = Hanging(), Withdrawal()
    with (
        serving(tmp_path, FunctionBackend(tmp_path, cold=hanging)) as running,
        ThreadPoolExecutor(1) as thread,
    ):
        worker = WorkerSocket(running.path, deadlines=ENDLESS)
        asking = thread.submit(ask, worker, Load("cold"), withdrawal=withdrawal)
        assert hanging.begun.wait(SECONDS)
        withdrawal.withdraw()
        assert isinstance(asking.exception(SECONDS), Withdrawn)
        assert hanging.cancelled.wait(SECONDS)


def test_a_withdrawal_before_the_request_prevents_it(worker: WorkerSocket) -> None:
    withdrawal = Withdrawal()
    withdrawal.withdraw()
    with pytest.raises(Withdrawn):
        ask(worker, Load("hot"), withdrawal=withdrawal)


def test_a_withdrawal_ends_the_wait_for_a_restart(tmp_path: Path) -> None:
    class WithdrawingAtOnce(Withdrawal):
        def pause(self, seconds: float) -> None:
            self.withdraw()
            super().pause(seconds)

    worker = WorkerSocket(tmp_path / "s", deadlines=ENDLESS)
    with ScriptedDaemon(worker.path, hang_up), pytest.raises(Withdrawn):
        ask(worker, Status(), withdrawal=WithdrawingAtOnce())


def test_an_error_of_the_callers_own_withdraws_the_request(tmp_path: Path) -> None:
    hanging = Hanging()

    def fail(_progress: Progress) -> None:
        assert hanging.begun.wait(SECONDS)
        raise KeyboardInterrupt

    with serving(tmp_path, FunctionBackend(tmp_path, cold=hanging)) as running:
        worker = WorkerSocket(running.path, deadlines=ENDLESS)
        with pytest.raises(KeyboardInterrupt):
            ask(worker, Load("cold"), on_progress=fail)
        assert hanging.cancelled.wait(SECONDS)


# --- Forks ---


def test_parent_and_forked_child_do_not_disturb_each_other(tmp_path: Path) -> None:
    child_was_here = asyncio.Event()

    async def child_first(backend: FunctionBackend, request: Load, _report: Any) -> Opened:
        if request.source == "cold/child":
            child_was_here.set()
        await child_was_here.wait()
        return backend.opened(request.source)

    script = Path(__file__).parent / "socketkit" / "forking.py"
    with serving(tmp_path, FunctionBackend(tmp_path, cold=child_first)) as running:
        done = subprocess.run(
            # Newer Pythons warn of forking with threads, which is what is tested here.
            [sys.executable, "-W", "ignore::DeprecationWarning", script, running.path],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "parent before: hot/1",
        "parent meanwhile: hot/2",
        "child inherited: no connection",
        "child: cold/child",
        "parent waited for: cold/parent",
        "parent after, on its old connections: hot/3",
    ]


def test_every_public_name_exists() -> None:
    assert all(hasattr(transport, name) for name in transport.__all__)
