"""Fixtures of the closure's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from closure.kit import seen_before
from daemon.api import Api
from daemons import DaemonProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hub import TestHub


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
