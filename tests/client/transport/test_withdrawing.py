"""Requests that are called off."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.daemon.transport import Cancellation, Cancelled, WorkerSocket
from craftcache.wire import Load, Progress, Status
from tests.support.sockets import FunctionBackend, ScriptedDaemon, load, serving
from tests.support.sockets.scripted import hang_up
from tests.support.sockets.serving import SECONDS
from tests.support.worker_client import ENDLESS, QUEUED, ask

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.wire import Loaded


class Hanging:
    """A backend function that hangs, and tells when it began and when it was cancelled."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def __call__(self, _backend: FunctionBackend, _request: Load, report: Any) -> Loaded:
        report(QUEUED)
        self.begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError


def test_a_withdrawal_ends_the_wait_on_both_sides(tmp_path: Path) -> None:
    hanging, cancellation = Hanging(), Cancellation()
    with (
        serving(tmp_path, FunctionBackend(tmp_path, cold=hanging)) as running,
        ThreadPoolExecutor(1) as thread,
    ):
        worker = WorkerSocket(running.path, deadlines=ENDLESS)
        asking = thread.submit(ask, worker, load("cold"), cancellation=cancellation)
        assert hanging.begun.wait(SECONDS)
        cancellation.withdraw()
        assert isinstance(asking.exception(SECONDS), Cancelled)
        assert hanging.cancelled.wait(SECONDS)


def test_a_withdrawal_before_the_request_prevents_it(worker: WorkerSocket) -> None:
    cancellation = Cancellation()
    cancellation.withdraw()
    with pytest.raises(Cancelled):
        ask(worker, load("hot"), cancellation=cancellation)


def test_a_withdrawal_ends_the_wait_for_a_restart(tmp_path: Path) -> None:
    class WithdrawingAtOnce(Cancellation):
        def pause(self, seconds: float) -> None:
            self.withdraw()
            super().pause(seconds)

    worker = WorkerSocket(tmp_path / "s", deadlines=ENDLESS)
    with ScriptedDaemon(worker.path, hang_up), pytest.raises(Cancelled):
        ask(worker, Status(), cancellation=WithdrawingAtOnce())


def test_an_error_of_the_callers_own_withdraws_the_request(tmp_path: Path) -> None:
    hanging = Hanging()

    def fail(_progress: Progress) -> None:
        assert hanging.begun.wait(SECONDS)
        raise KeyboardInterrupt

    with serving(tmp_path, FunctionBackend(tmp_path, cold=hanging)) as running:
        worker = WorkerSocket(running.path, deadlines=ENDLESS)
        with pytest.raises(KeyboardInterrupt):
            ask(worker, load("cold"), on_progress=fail)
        assert hanging.cancelled.wait(SECONDS)
