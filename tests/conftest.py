"""Fixtures of all tests: an environment without the user's own settings, and the test hub."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.support.blocking import blocking_calls
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import TestHub, hub_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from xdist.scheduler import LoadScopeScheduling

    from tests.support.hub import Repo

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

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


WHOLE_FOLDERS = ("fleet", "release", "systemd", "upstream")
"""Folders whose tests run one after another."""


def pytest_configure(config: pytest.Config) -> None:
    """Clean the process's own environment: libraries read theirs when test modules import them.

    Signals too: a script's ``make test &``, nohup and some CI systems have them ignored, and every
    process that a test starts would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    home = tempfile.TemporaryDirectory(prefix="craftcache-tests-")
    config.add_cleanup(home.cleanup)
    for name in _not_for_tests():
        del os.environ[name]
    os.environ.update(_for_tests(Path(home.name)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole folders come first: they take longest, and are not to be what is left at the end."""
    items.sort(key=lambda item: _room(item.nodeid) not in WHOLE_FOLDERS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config) -> LoadScopeScheduling:
    """Keep together what shares fixtures, where the tests run in several processes.

    That is a file, or a whole folder where its tests share a machine or what they have built; of
    ``upstream`` the part of it that is for one of AudioCraft's environments.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc]  # untyped
        def _split_scope(self, nodeid: str) -> str:  # as xdist's own scheduler by files has it
            room = _room(nodeid)
            if room == "upstream":
                return room + " ".join(re.findall(r"\b(?:newest|pinned)\b", nodeid))
            return room if room in WHOLE_FOLDERS else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return Together(config)


def _room(nodeid: str) -> str:
    """The folder of ``tests/`` that a test is in."""
    return nodeid.removeprefix("tests/").partition("/")[0]


@pytest.fixture(autouse=True)
def isolated_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An empty home for each test, which child processes and our own code see; returns it."""
    home = tmp_path_factory.mktemp("home")
    for name in _not_for_tests():
        monkeypatch.delenv(name)
    for name, value in _for_tests(home).items():
        monkeypatch.setenv(name, value)
    return home


@pytest.fixture(scope="session")
def all_blocking_calls() -> Iterator[list[str]]:
    """The calls of ours that have blocked a running event loop, once they are told of."""
    with blocking_calls() as calls:
        yield calls


@pytest.fixture(autouse=True)
def no_blocking(all_blocking_calls: list[str]) -> Iterator[None]:
    """Any call of ours that blocks a running event loop fails the test, whoever caught that."""
    all_blocking_calls.clear()
    yield
    assert not all_blocking_calls, "\n\n".join(all_blocking_calls)


def _not_for_tests() -> list[str]:
    return [
        name
        for name in os.environ
        if name.startswith(OURS_AND_UPSTREAMS)
        or name in SYSTEMDS
        or name.lower().endswith("_proxy")
    ]


def _for_tests(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        # The test hub and its CDN speak plain HTTP there.
        "CRAFTCACHE_INSECURE_HOSTS": "127.0.0.1",
        # What passes must not depend on how full the disk of this machine is.
        "CRAFTCACHE_MIN_FREE": "0",
    }


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


@pytest.fixture
def base() -> Iterator[Path]:
    """A new directory with a path short enough for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="cc-") as path:
        yield Path(path)


@pytest.fixture
def export_repo(threaded_hub: TestHub) -> Repo:
    """The repository ``org/model`` of the threaded hub; holds a real export."""
    repo = threaded_hub.repo("org/model")
    repo.commit(EXPORT_FILES)
    return repo


@pytest.fixture
def daemon(base: Path, threaded_hub: TestHub, export_repo: Repo) -> Iterator[DaemonProcess]:
    """A daemon in a process of its own, whose Hub has ``export_repo``."""
    with DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as running:
        yield running
