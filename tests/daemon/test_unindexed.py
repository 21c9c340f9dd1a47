"""What a worker published while there was no daemon has no index until a daemon serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from craftcache import Client
from daemons import DaemonProcess

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from hub import Repo, TestHub


def test_it_is_inspected_before_it_is_served_and_not_fetched_again(
    base: Path, threaded_hub: TestHub, export_repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)
    alone = Client(socket_dir=base / "nothing", cache_dir=base / "cache").load("org/model")
    assert alone.served_by == "origin"
    indexes = base / "cache" / ".craftcache" / "index"
    assert list(indexes.iterdir()) == []
    asked = len(threaded_hub.requests)
    with (
        DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as daemon,
        daemon.client() as client,
    ):
        assert client.load("org/model").served_by == "daemon"
    assert {path.stem for path in indexes.iterdir()} == {
        file.sha256 for file in alone.files.values()
    }
    assert len(threaded_hub.requests) == asked
