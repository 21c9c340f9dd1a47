"""The worker's end of the socket: what it makes of answers, in threads and forked children."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.daemon import transport
from craftcache.daemon.transport import DaemonBroken, WorkerSocket
from craftcache.errors import CraftcacheError, NotFound
from craftcache.wire import (
    Load,
    Model,
    Models,
    ModelsPage,
    Progress,
    Resolve,
    Resolved,
    ServedFile,
    Status,
    StatusReport,
    Warm,
)
from tests.support import SUPPORT
from tests.support.sockets import FunctionBackend, serving
from tests.support.sockets.backend import BLOB, INDEX
from tests.support.sockets.serving import SECONDS
from tests.support.worker_client import ENDLESS, ask

if TYPE_CHECKING:
    from pathlib import Path

    from craftcached.serve.backend import Opened
    from tests.support.sockets import Serving


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


def test_parent_and_forked_child_do_not_disturb_each_other(tmp_path: Path) -> None:
    child_was_here = asyncio.Event()

    async def child_first(backend: FunctionBackend, request: Load, _report: Any) -> Opened:
        if request.source == "cold/child":
            child_was_here.set()
        await child_was_here.wait()
        return backend.opened(request.source)

    script = SUPPORT / "sockets" / "forking.py"
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
