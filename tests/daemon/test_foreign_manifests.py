"""Manifests that the daemon did not write: a worker's own, and another user's."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from daemons import DaemonProcess

if TYPE_CHECKING:
    from pathlib import Path

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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_another_user_wrote_is_verified_anew(
    daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    with daemon.client() as client:
        revision = client.load("org/model").revision
        [manifest] = (daemon.cache_dir / ".craftcache" / "manifests").iterdir()
        other = json.loads(manifest.read_bytes()) | {"revision": "f" * 40}
        manifest.write_text(json.dumps(other))
        os.chown(manifest, 65534, 65534)
        sent = threaded_hub.bytes_sent("*.bin", origin="cdn")
        again = client.load("org/model")
    assert again.served_by == "daemon"
    assert again.revision == revision
    assert manifest.stat().st_uid == os.geteuid()
    assert threaded_hub.bytes_sent("*.bin", origin="cdn") == sent
