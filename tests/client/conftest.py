"""Fixtures of the client's tests: a worker alone, and a node with a daemon."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from tests.support.clients import Node
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import hub_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.hub import Repo, TestHub


@pytest.fixture
def hub_endpoint(threaded_hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub's address, in this process's environment."""
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)
    return threaded_hub.endpoint


@pytest.fixture
def alone(base: Path, export_repo: Repo, hub_endpoint: str) -> Client:
    """A client where a daemon's sockets ought to be and are not, with a cache of its own."""
    return Client(socket_dir=base / "run", cache_dir=base / "cache")


@pytest.fixture(scope="package")
def node() -> Iterator[Node]:
    """A node whose daemon has ``org/model`` warm; for tests that only read."""
    with (
        tempfile.TemporaryDirectory(prefix="cc-") as directory,
        hub_in_thread() as hub,
        DaemonProcess(Path(directory), HF_ENDPOINT=hub.endpoint) as daemon,
        daemon.client() as client,
    ):
        hub.repo("org/model").commit(EXPORT_FILES)
        client.warm("org/model")
        yield Node(hub, daemon)
