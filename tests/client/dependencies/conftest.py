"""Fixtures of the closure's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.api import Api
from tests.support.daemons import DaemonProcess
from tests.support.dependencies import seen_before

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.hub import TestHub


@pytest.fixture
def seen(base: Path) -> Path:
    """A base directory whose cache has seen the kit's checkpoints, so that none waits for torch."""
    seen_before(base / "cache")
    return base


@pytest.fixture
def daemon(seen: Path, threaded_hub: TestHub) -> Iterator[DaemonProcess]:
    """A daemon in a process of its own, whose Hub is empty at first."""
    with DaemonProcess(seen, HF_ENDPOINT=threaded_hub.endpoint) as running:
        yield running


@pytest.fixture
def api(daemon: DaemonProcess) -> Iterator[Api]:
    """The HTTP interface of ``daemon``."""
    with Api(daemon.socket_dir) as connected:
        yield connected
