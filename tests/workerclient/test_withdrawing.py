"""Requests that are called off."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.transport import Withdrawal, Withdrawn, WorkerSocket
from craftcache.wire import Load, Progress, Status
from socketkit import FunctionBackend, ScriptedDaemon, serving
from socketkit.scripted import hang_up
from socketkit.serving import SECONDS
from workerclient.kit import ENDLESS, QUEUED, ask

if TYPE_CHECKING:
    from pathlib import Path

    from craftcached.serve.backend import Opened


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
