"""Fixtures of all tests: an environment without the user's own settings, and the test hub."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from hub import TestHub, hub_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

OURS_AND_UPSTREAMS = (
    "AUDIOCRAFT_",
    "CRAFTCACHE_",
    "HF_",
    "HUGGINGFACE_",
    "HUGGING_FACE_",
    "TORCH_HOME",
    "TRANSFORMERS_",
    "XDG_",
)
"""Beginnings of the variables that would make a test depend on who runs it."""

SYSTEMDS = (
    "CACHE_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
)


@pytest.fixture(autouse=True)
def isolated_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A new, empty home and none of the variables above; returns the home."""
    for name in list(os.environ):
        if name.startswith(OURS_AND_UPSTREAMS) or name in SYSTEMDS:
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("NO_PROXY", "*")
    return home


@pytest.fixture
async def hub() -> AsyncIterator[TestHub]:
    """A hub on the test's own loop."""
    async with TestHub() as running:
        yield running


@pytest.fixture
def threaded_hub() -> Iterator[TestHub]:
    """A hub in a thread, for synchronous tests and child processes."""
    with hub_in_thread() as running:
        yield running
