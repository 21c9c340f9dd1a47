"""A cache whose directories were linked by hand to another file system is filled all the same."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import hf_hub_download

from craftcache import Client
from craftcache.cache.directory import CacheDir
from craftcache.digests import hash_file
from tests.support.checkpoints import saved
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import Data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

PAIR = tuple(EXPORT_FILES)

LINKED = [
    "models--org--model",
    "models--org--model/blobs",
    "models--org--model/snapshots",
    "models--org--model/refs",
    ".locks",
]
"""Directories that people link to where there is room."""


@pytest.fixture(autouse=True)
def endpoint(threaded_hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a worker asks that does without the daemon."""
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)


@pytest.fixture
def elsewhere(base: Path) -> Iterator[Path]:
    """A directory on another file system than ``base``."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="cc-") as path:
        if os.stat(path).st_dev == base.stat().st_dev:
            pytest.skip("/dev/shm is no file system of its own")
        yield Path(path)


def link(cache_dir: Path, name: str, elsewhere: Path) -> Path:
    """Make one directory of a cache a link to another file system; returns where it leads."""
    target = elsewhere / name.replace("/", "_")
    target.mkdir()
    (cache_dir / name).parent.mkdir(parents=True, exist_ok=True)
    (cache_dir / name).symlink_to(target)
    return target


def assert_filled(cache_dir: Path, elsewhere: Path) -> None:
    """All is there for whoever reads it offline, and nothing besides."""
    for name in PAIR:
        path = hf_hub_download("org/model", name, cache_dir=cache_dir, local_files_only=True)
        assert Path(path).read_bytes() == EXPORT_FILES[name].read_bytes()
    left = [p for place in (cache_dir, elsewhere) for p in place.rglob(".craftcache-*")]
    assert left == []
    assert list((cache_dir / ".craftcache" / "staging").glob("*.tmp")) == []


def update(repo: Repo) -> bytes:
    """Make a second commit with another model."""
    changed = saved({"best_state": {"changed": 1}})
    repo.commit({"state_dict.bin": changed})
    return changed


@pytest.mark.parametrize("name", LINKED[:3])
def test_the_daemon_fills_it_once_and_follows_updates(
    api: Api,
    daemon: DaemonProcess,
    threaded_hub: TestHub,
    export_repo: Repo,
    elsewhere: Path,
    name: str,
) -> None:
    link(daemon.cache_dir, name, elsewhere)
    (result,) = api.warm("org/model").json()["results"]
    assert result["bytes_fetched"] > 0
    assert_filled(daemon.cache_dir, elsewhere)
    sent = threaded_hub.count("GET", "*", origin="cdn")
    (again,) = api.warm("org/model").json()["results"]
    assert again["bytes_fetched"] == 0
    assert threaded_hub.count("GET", "*", origin="cdn") == sent
    with daemon.client() as client:
        assert client.load("org/model").served_by == "daemon"
        changed = update(export_repo)
        client.warm("org/model")
        path = client.resolve("org/model", "state_dict.bin")
        assert path.read_bytes() == changed
        loaded = client.load_state_dict("org/model", filename="state_dict.bin")
    assert loaded == {"best_state": {"changed": 1}}
    assert api.delete("org/model").status_code < 300
    blobs = (daemon.cache_dir / "models--org--model").glob("blobs/*")
    assert changed not in [blob.read_bytes() for blob in blobs]


def test_what_another_repository_has_there_is_not_fetched_again(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, elsewhere: Path
) -> None:
    link(daemon.cache_dir, "models--org--model", elsewhere)
    threaded_hub.repo("org/twin").commit(EXPORT_FILES)
    api.warm("org/model")
    (result,) = api.warm("org/twin").json()["results"]
    assert result["bytes_fetched"] == 0
    blobs = list((daemon.cache_dir / "models--org--twin" / "blobs").iterdir())
    assert sorted(b.read_bytes() for b in blobs) == sorted(
        path.read_bytes() for path in EXPORT_FILES.values()
    )


def test_what_the_library_put_there_is_adopted(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, elsewhere: Path
) -> None:
    link(daemon.cache_dir, "models--org--model/blobs", elsewhere)
    for name in PAIR:
        hf_hub_download(
            "org/model", name, cache_dir=daemon.cache_dir, endpoint=threaded_hub.endpoint
        )
    (result,) = api.warm("org/model").json()["results"]
    assert result["bytes_fetched"] == 0
    assert_filled(daemon.cache_dir, elsewhere)


def test_urls_are_published_where_their_blobs_were_linked_to(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, elsewhere: Path
) -> None:
    blobs = daemon.cache_dir / ".craftcache" / "blobs" / "sha256"
    blobs.rmdir()
    link(daemon.cache_dir, ".craftcache/blobs/sha256", elsewhere)
    threaded_hub.files["/model.th"] = model = Data(saved({"a": 1}))
    url = threaded_hub.cdn_url("/model.th")
    assert api.warm(url).status_code == 200
    with daemon.client() as client:
        assert client.load_state_dict(url) == {"a": 1}
    assert [path.name for path in blobs.iterdir()] == [model.sha256]


@pytest.mark.parametrize("name", LINKED)
def test_a_worker_alone_fills_it_too(
    base: Path,
    threaded_hub: TestHub,
    export_repo: Repo,
    elsewhere: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client(socket_dir=base / "nothing", cache_dir=base / "cache")
    link(client.cache_dir, name, elsewhere)
    assert client.load("org/model").served_by == "origin"
    assert_filled(client.cache_dir, elsewhere)
    asked = len(threaded_hub.requests)
    assert client.load("org/model").served_by == "cache"
    assert len(threaded_hub.requests) == asked


def test_what_a_kill_left_beside_a_blob_goes_with_the_next_copy(
    api: Api, daemon: DaemonProcess, elsewhere: Path
) -> None:
    target = link(daemon.cache_dir, "models--org--model/blobs", elsewhere)
    old, new = target / ".craftcache-1-aa.tmp", target / ".craftcache-2-bb.tmp"
    old.write_bytes(b"half a blob")
    os.utime(old, (0, 0))
    new.write_bytes(b"of somebody who is at work")
    api.warm("org/model")
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize("what", ["models--org--model", "models--org--model/blobs"])
def test_a_disk_that_is_not_mounted_is_named_before_a_byte_is_fetched(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, elsewhere: Path, what: str
) -> None:
    link(daemon.cache_dir, what, elsewhere).rmdir()
    problem = api.warm("org/model").json()
    assert "is a link to" in problem["detail"]
    assert "which is not there" in problem["detail"]
    assert not problem["retryable"]
    assert threaded_hub.count("GET", "*.bin", origin="cdn") == 0
    assert (daemon.cache_dir / what).is_symlink()
    with daemon.client() as client:
        assert client.load("org/model").served_by == "origin"


def test_what_turns_out_wrong_there_goes_to_quarantine(
    api: Api, daemon: DaemonProcess, elsewhere: Path
) -> None:
    target = link(daemon.cache_dir, "models--org--model/blobs", elsewhere)
    api.warm("org/model")
    tree = CacheDir(daemon.cache_dir).hub_tree("org/model")
    commit = tree.commit_of("main")
    assert commit is not None
    blob = tree.blob(tree.etag_of(commit, "state_dict.bin") or "")
    blob.chmod(0o644)
    blob.write_bytes(b"wrong" * 100)
    api.request("POST", "/verify", json={"sources": ["org/model"]})
    quarantine = list((daemon.cache_dir / ".craftcache" / "quarantine").iterdir())
    assert [path.read_bytes() for path in quarantine] == [b"wrong" * 100]
    # Its origin had it again.
    assert hash_file(target / blob.name).sha256 == blob.name


def test_of_a_link_that_leads_out_of_the_cache_only_the_link_is_moved(
    api: Api, daemon: DaemonProcess, export_repo: Repo, elsewhere: Path
) -> None:
    """What it leads to is somebody else's: a blob that was put where there is room, or a device."""
    assert api.warm("org/model").is_success
    with daemon.client() as client:
        blob = client.resolve("org/model", "state_dict.bin").resolve()
    others = elsewhere / "somebody's"
    others.write_bytes(b"wrong")
    blob.unlink()
    blob.symlink_to(others)
    response = api.request("POST", "/verify", json={"sources": ["org/model"]})
    assert response.status_code == 200, response.text
    found = {each["filename"]: each for each in response.json()["results"]}["state_dict.bin"]
    assert found["outcome"] == "mended"
    assert others.read_bytes() == b"wrong"
    assert hash_file(blob).sha256 == blob.name
    assert not blob.is_symlink()


def test_what_is_wrong_there_is_set_aside_and_named(
    api: Api, daemon: DaemonProcess, export_repo: Repo, elsewhere: Path
) -> None:
    target = link(daemon.cache_dir, "models--org--model/blobs", elsewhere)
    assert api.warm("org/model").is_success
    with daemon.client() as client:
        blob = client.resolve("org/model", "state_dict.bin").resolve()
    blob.unlink()
    blob.mkdir()  # it cannot be moved to the quarantine, which is on another file system
    response = api.request("POST", "/verify", json={"sources": ["org/model"]})
    assert response.status_code == 200, response.text
    found = {each["filename"]: each for each in response.json()["results"]}["state_dict.bin"]
    assert found["outcome"] == "mended"
    aside = Path(found["quarantined"])
    assert aside.is_dir()
    assert aside.is_relative_to(target)
    with daemon.client() as client:
        assert client.load("org/model").served_by == "daemon"
