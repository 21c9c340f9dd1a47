"""What the daemon did not write itself: a worker's manifests, another user's files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from craftcache.cache.directory import CacheDir
from tests.support.daemons import EXPORT_FILES, DaemonProcess

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import Repo, TestHub


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_blob_of_another_user_is_copied_before_it_is_believed(
    daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    commit = export_repo.resolve("main")
    assert commit is not None
    tree = CacheDir(daemon.cache_dir).hub_tree("org/model")
    etags = {}
    for filename, path in EXPORT_FILES.items():
        etags[filename] = hashlib.sha256(path.read_bytes()).hexdigest()
        blob = tree.blob(etags[filename])
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        os.chown(blob, 65534, 65534)
    held = [tree.blob(etag).open("r+b") for etag in etags.values()]
    with daemon.client() as client:
        client.warm(["org/model"])
        for file in held:  # still their owner's, but no longer what is served
            file.write(b"\0" * 4096)
            file.close()
        export = client.load("org/model")
    assert threaded_hub.bytes_sent("*.bin", origin="cdn") == 0
    for filename, etag in etags.items():
        blob = tree.blob(etag)
        assert blob.stat().st_uid == os.geteuid()
        assert blob.read_bytes() == EXPORT_FILES[filename].read_bytes()
    assert export.served_by == "daemon"


@pytest.mark.parametrize("leads_to", ["itself", "a blob", "nothing"])
@pytest.mark.parametrize("name", ["daemon.lock", "daemon.heartbeat", "format.json", "owner"])
def test_a_link_in_the_place_of_a_file_of_the_daemons_own_is_got_over(
    base: Path, threaded_hub: TestHub, export_repo: Repo, name: str, leads_to: str
) -> None:
    with DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as daemon:
        with daemon.client() as client:
            revision = client.load("org/model").revision
        blobs = {path: path.read_bytes() for path in daemon.cache_dir.glob("models--*/blobs/*")}
        place = daemon.cache_dir / ".craftcache" / name
        place.unlink(missing_ok=True)
        place.symlink_to({"itself": place, "a blob": min(blobs), "nothing": base / "no"}[leads_to])
        with daemon.client() as client:
            assert client.load("org/model").revision == revision
        daemon.terminate()
        daemon.start()
        with daemon.client() as client:
            loaded = client.load("org/model")
        assert (loaded.revision, loaded.served_by) == (revision, "daemon")
        assert {path: path.read_bytes() for path in blobs} == blobs
        assert not (base / "no").exists()
