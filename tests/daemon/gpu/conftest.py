"""A daemon that has ``org/model`` warm, for services of GPUs that are emulated by memory files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.gpu.fingerprint import fingerprint
from tests.support.gpu.processes import GpuServiceProcess, GpuWorker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemons import DaemonProcess


@pytest.fixture
def warm(daemon: DaemonProcess) -> DaemonProcess:
    """A daemon that has ``org/model`` warm."""
    with daemon.client() as client:
        client.warm("org/model")
    return daemon


@pytest.fixture
def expected(warm: DaemonProcess) -> dict[str, str]:
    """What a load without sharing gives, as a fingerprint of each part."""
    with warm.client() as client:
        export = client.load("org/model")
    return {"lm": fingerprint(export.lm), "compression": fingerprint(export.compression)}


@pytest.fixture
def service(warm: DaemonProcess) -> Iterator[GpuServiceProcess]:
    with GpuServiceProcess(warm.socket_dir) as running:
        yield running


def worker_of(daemon: DaemonProcess, **options: object) -> GpuWorker:
    return GpuWorker(daemon.socket_dir, daemon.cache_dir, **options)
