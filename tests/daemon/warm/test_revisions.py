"""Which revision is served: the one last warmed, without asking; only a warm asks."""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import hf_hub_download

from craftcache.cache.directory import CacheDir
from tests.support.checkpoints import saved
from tests.support.daemons import EXPORT_FILES

if TYPE_CHECKING:
    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

OTHER = {"state_dict.bin": saved({"other": 1}), "compression_state_dict.bin": saved({})}


@pytest.mark.parametrize("revision", ["main", "dev", "feature/long/branch", "v1.0", "commit"])
def test_every_kind_of_revision_is_warmed_and_loaded(
    api: Api, daemon: DaemonProcess, export_repo: Repo, revision: str
) -> None:
    commit = export_repo.resolve("main") or ""
    export_repo.branch("dev", commit)
    export_repo.branch("feature/long/branch", commit)
    export_repo.tag("v1.0", commit)
    source = f"org/model@{commit if revision == 'commit' else revision}"
    (result,) = api.warm(source).json()["results"]
    assert result["revision"] == commit
    with daemon.client() as client:
        assert client.load(source).revision == commit


def test_revisions_live_side_by_side(api: Api, daemon: DaemonProcess, export_repo: Repo) -> None:
    old = export_repo.resolve("main") or ""
    export_repo.tag("v1", old)
    new = export_repo.commit(OTHER)
    assert api.warm("org/model@v1", "org/model").status_code == 200
    with daemon.client() as client:
        assert client.load("org/model@v1").revision == old
        export = client.load("org/model")
        assert (export.revision, export.lm) == (new, {"other": 1})


def test_a_load_serves_what_was_warmed_without_asking(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    api.warm("org/model")
    old = export_repo.resolve("main")
    new = export_repo.commit(OTHER)
    before = len(threaded_hub.requests)
    with daemon.client() as client:
        assert client.load("org/model").revision == old
        assert len(threaded_hub.requests) == before
        assert api.warm("org/model").json()["results"][0]["revision"] == new
        assert client.load("org/model").revision == new


def test_a_source_never_warmed_is_resolved_by_the_first_load(
    daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    with daemon.client() as client:
        assert client.load("org/model").revision == export_repo.resolve("main")
        before = len(threaded_hub.requests)
        client.load("org/model")
    assert len(threaded_hub.requests) == before


def test_an_unchanged_revision_is_warmed_by_asking_only(api: Api, threaded_hub: TestHub) -> None:
    api.warm("org/model")
    before = threaded_hub.count("GET")
    (result,) = api.warm("org/model").json()["results"]
    assert result["bytes_fetched"] == 0
    assert threaded_hub.count("GET") == before


def test_a_known_commit_needs_no_network(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    api.warm("org/model")
    commit = export_repo.resolve("main")
    before = len(threaded_hub.requests)
    with daemon.client() as client:
        assert client.load(f"org/model@{commit}").revision == commit
    assert api.warm(f"org/model@{commit}").status_code == 200
    assert len(threaded_hub.requests) == before


def test_a_commit_that_main_has_left_needs_no_network(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    api.warm("org/model")
    old = export_repo.resolve("main")
    export_repo.commit(OTHER)
    api.warm("org/model")
    before = len(threaded_hub.requests)
    with daemon.client() as client:
        assert client.load(f"org/model@{old}").revision == old
    assert len(threaded_hub.requests) == before


def test_files_asked_for_one_by_one_are_of_one_revision(
    api: Api, daemon: DaemonProcess, export_repo: Repo
) -> None:
    old = export_repo.resolve("main")
    api.warm("org/model", files=("state_dict.bin",))
    export_repo.commit(OTHER)
    with daemon.client() as client:
        assert client.load("org/model").revision == old


@pytest.mark.parametrize("left", ["nothing", "the snapshot"])
def test_completing_a_model_moves_no_ref_back_that_the_library_moved_on(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo, left: str
) -> None:
    old = export_repo.resolve("main") or ""
    api.warm("org/model", files=("state_dict.bin",))
    download = partial(
        hf_hub_download,
        "org/model",
        cache_dir=daemon.cache_dir,
        endpoint=threaded_hub.endpoint,
    )
    if left == "the snapshot":
        download("compression_state_dict.bin", revision=old)
    new = export_repo.commit(OTHER)
    theirs = download("state_dict.bin")
    with daemon.client() as client:
        assert client.load("org/model").revision == old
    tree = CacheDir(daemon.cache_dir).hub_tree("org/model")
    assert tree.commit_of("main") == new
    assert download("state_dict.bin", local_files_only=True) == theirs


def test_a_warm_of_one_file_brings_the_others_along(
    api: Api, daemon: DaemonProcess, export_repo: Repo
) -> None:
    api.warm("org/model")
    new = export_repo.commit(OTHER)
    (result,) = api.warm("org/model", files=("state_dict.bin",)).json()["results"]
    assert result["revision"] == new
    assert {file["filename"] for file in result["files"]} == set(EXPORT_FILES)


def test_a_file_that_the_new_revision_lacks_is_left_out(
    api: Api, daemon: DaemonProcess, export_repo: Repo
) -> None:
    export_repo.commit({"extra.th": OTHER["state_dict.bin"]})
    api.warm("org/model", files=("extra.th", "state_dict.bin"))
    export_repo.commit({"extra.th": None})
    (result,) = api.warm("org/model", files=("state_dict.bin",)).json()["results"]
    assert [file["filename"] for file in result["files"]] == ["state_dict.bin"]


def test_a_cache_that_was_moved_is_verified_again_without_network(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    api.warm("org/model")
    daemon.terminate()
    moved = daemon.cache_dir.with_name("moved")
    shutil.copytree(daemon.cache_dir, moved, symlinks=True)
    shutil.rmtree(daemon.cache_dir)
    moved.rename(daemon.cache_dir)
    before = len(threaded_hub.requests)
    daemon.start()
    with daemon.client() as client:
        assert client.load("org/model").served_by == "daemon"
    assert len(threaded_hub.requests) == before


def test_a_published_file_that_was_changed_since_is_not_served(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    (result,) = api.warm("org/model").json()["results"]
    blob = daemon.cache_dir / result["files"][1]["path"]
    content = bytearray(blob.read_bytes())
    content[5000] ^= 1
    os.chmod(blob, 0o644)
    blob.write_bytes(content)
    with daemon.client() as client:
        export = client.load("org/model")
    assert export.served_by == "daemon"
    assert blob.read_bytes() == EXPORT_FILES[result["files"][1]["filename"]].read_bytes()
    (quarantined,) = (daemon.cache_dir / ".craftcache/quarantine").iterdir()
    assert quarantined.read_bytes() == content
