"""Fixtures of the client's tests: a worker alone, and a node with a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from craftcache import Client

if TYPE_CHECKING:
    from pathlib import Path

    from hub import Repo, TestHub


@pytest.fixture
def hub_endpoint(threaded_hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub's address, in this process's environment."""
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)
    return threaded_hub.endpoint


@pytest.fixture
def alone(base: Path, export_repo: Repo, hub_endpoint: str) -> Client:
    """A client where a daemon's sockets ought to be and are not, with a cache of its own."""
    return Client(socket_dir=base / "run", cache_dir=base / "cache")
