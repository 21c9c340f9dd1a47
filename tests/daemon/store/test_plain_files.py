"""Files beside the checkpoints: had by their path, with a daemon and without, and never loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from craftcache import Client, NotACheckpoint
from craftcache.daemon.transport import WorkerSocket
from craftcache.sources import parse
from craftcache.wire import Load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

FILES = {"config.json": b'{"a": 1}', "model.safetensors": b"\0" * 8, "README.md": b"# Model"}


@pytest.fixture(autouse=True)
def _plain_files(export_repo: Repo) -> None:
    export_repo.commit(FILES)


@pytest.fixture(params=["daemon", "alone"])
def client(
    request: pytest.FixtureRequest,
    base: Path,
    threaded_hub: TestHub,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Client]:
    """A client with a daemon, and one without."""
    if request.param == "daemon":
        daemon: DaemonProcess = request.getfixturevalue("daemon")
        with Client(
            socket_dir=daemon.socket_dir, cache_dir=daemon.cache_dir, fallback="none"
        ) as served:
            yield served
        return
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)
    with Client(socket_dir=base / "none", cache_dir=base / "cache") as alone:
        yield alone


@pytest.mark.parametrize("filename", FILES)
def test_it_is_resolved_and_not_loaded(client: Client, filename: str) -> None:
    path = client.resolve("org/model", filename)
    assert path.read_bytes() == FILES[filename]
    with pytest.raises(NotACheckpoint, match="Use resolve"):
        client.load_state_dict("org/model", filename)
    assert client.resolve("org/model", filename) == path


def test_the_daemon_says_so_too(daemon: DaemonProcess) -> None:
    with daemon.client() as client:
        client.warm("org/model", filenames=["config.json"])
    worker = WorkerSocket(daemon.socket_dir / "worker" / "handles.sock")
    with pytest.raises(NotACheckpoint, match="Use resolve"):
        worker.ask(Load(parse("org/model"), ("config.json",)), patience=lambda: 60.0)
    worker.close()
