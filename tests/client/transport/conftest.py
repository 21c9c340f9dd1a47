"""A daemon's end of the worker socket in this process, and the worker's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from craftcache.daemon.transport import WorkerSocket
from tests.support.sockets import FunctionBackend, serving
from tests.support.worker_client import ENDLESS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.sockets import Serving


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
