"""Removing a model frees what nothing else needs, and nothing more."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from huggingface_hub import hf_hub_download

from tests.daemon.store.test_tree import share_blob
from tests.support.checkpoints import saved
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import OnDisk

if TYPE_CHECKING:
    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

LM, CODEC = EXPORT_FILES["state_dict.bin"], EXPORT_FILES["compression_state_dict.bin"]
LM_SIZE, CODEC_SIZE = LM.stat().st_size, CODEC.stat().st_size
SIZE = LM_SIZE + CODEC_SIZE


def freed(api: Api, source: str) -> int:
    response = api.delete(source)
    assert response.status_code == 200, response.text
    return int(response.json()["freed_bytes"])


def leftovers(daemon: DaemonProcess) -> set[str]:
    """The regular files of the cache by name, without those that hold no model."""
    return {
        path.name
        for path in daemon.cache_dir.rglob("*")
        if path.is_file()
        and path.suffix not in (".lock", ".TAG")
        and path.name != "format.json"
        and path.parent.name not in ("index", "stamps")
    }


def test_all_bytes_of_the_only_model_are_freed(api: Api, daemon: DaemonProcess) -> None:
    api.warm("org/model")
    assert len(leftovers(daemon)) > 0
    assert freed(api, "org/model") == SIZE
    assert leftovers(daemon) == set()
    assert not (daemon.cache_dir / "models--org--model").exists()
    assert api.request("GET", "/models/org/model").status_code == 404
    assert api.delete("org/model").json()["was_cached"] is False  # no more than its entry
    assert api.delete("org/model").status_code == 404


def test_afterwards_the_library_downloads_it_again(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    api.warm("org/model")
    api.delete("org/model")
    for name, original in EXPORT_FILES.items():
        path = hf_hub_download(
            "org/model", name, cache_dir=daemon.cache_dir, endpoint=threaded_hub.endpoint
        )
        with open(path, "rb") as file:
            assert file.read() == original.read_bytes()


def test_afterwards_it_can_be_warmed_again(api: Api, threaded_hub: TestHub) -> None:
    for _ in range(2):
        (result,) = api.warm("org/model").json()["results"]
        assert result["bytes_fetched"] == SIZE
        api.delete("org/model")


def test_bytes_that_another_repository_shares_stay(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("org/other").commit({"state_dict.bin": LM, "compression_state_dict.bin": LM})
    api.warm("org/model", "org/other")
    assert freed(api, "org/model") == CODEC_SIZE
    with daemon.client() as client:
        assert client.load("org/other").served_by == "daemon"
    assert freed(api, "org/other") == LM_SIZE
    assert leftovers(daemon) == set()


def test_bytes_that_a_url_shares_stay(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    for name, path in EXPORT_FILES.items():
        threaded_hub.files[f"/export/{name}"] = OnDisk(path)
    url = threaded_hub.cdn_url("/export/")
    api.warm("org/model")
    api.warm(f"{url}state_dict.bin#sha256={OnDisk(LM).sha256}")
    assert freed(api, "org/model") == CODEC_SIZE
    with daemon.client() as client:
        assert client.load(url).served_by == "daemon"
    assert freed(api, url) == SIZE
    assert leftovers(daemon) == set()


def test_another_revision_keeps_what_it_shares(
    api: Api, daemon: DaemonProcess, export_repo: Repo
) -> None:
    first = export_repo.resolve("main") or ""
    export_repo.tag("v1", first)
    export_repo.commit({"state_dict.bin": saved({"best_state": {}})})
    api.warm("org/model@v1", "org/model")
    assert freed(api, "org/model@v1") == LM_SIZE
    with daemon.client() as client:
        assert client.load("org/model").served_by == "daemon"
    assert freed(api, "org/model") > CODEC_SIZE
    assert leftovers(daemon) == set()


def test_a_second_name_of_one_revision_keeps_all_of_it(
    api: Api, daemon: DaemonProcess, export_repo: Repo
) -> None:
    export_repo.tag("v1", export_repo.resolve("main") or "")
    api.warm("org/model@v1", "org/model")
    assert freed(api, "org/model@v1") == 0
    for name in EXPORT_FILES:
        hf_hub_download("org/model", name, cache_dir=daemon.cache_dir, local_files_only=True)
    assert freed(api, "org/model") == SIZE
    assert leftovers(daemon) == set()


def test_a_snapshot_of_the_librarys_own_keeps_its_blobs(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    old = export_repo.resolve("main") or ""
    for name in EXPORT_FILES:
        hf_hub_download(
            *("org/model", name),
            revision=old,
            cache_dir=daemon.cache_dir,
            endpoint=threaded_hub.endpoint,
        )
    new = saved({"best_state": {}})
    export_repo.commit({"state_dict.bin": new})
    api.warm("org/model")
    assert freed(api, "org/model") == len(new)
    for name, original in EXPORT_FILES.items():
        path = hf_hub_download(
            "org/model", name, revision=old, cache_dir=daemon.cache_dir, local_files_only=True
        )
        with open(path, "rb") as file:
            assert file.read() == original.read_bytes()


def test_other_files_of_the_same_snapshot_stay(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    export_repo.commit({"config.json": b"{}"})
    path = hf_hub_download(
        "org/model", "config.json", cache_dir=daemon.cache_dir, endpoint=threaded_hub.endpoint
    )
    api.warm("org/model")
    assert freed(api, "org/model") == SIZE
    assert path == hf_hub_download(
        "org/model", "config.json", cache_dir=daemon.cache_dir, local_files_only=True
    )


def test_a_blob_in_the_librarys_shared_store_is_freed_with_its_last_model(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("org/copy").commit(EXPORT_FILES)
    api.warm("org/model", "org/copy")
    api.delete("org/copy")
    blob = daemon.cache_dir / "models--org--model/blobs" / OnDisk(LM).sha256
    shared = share_blob(daemon.cache_dir, blob, "cd" * 32)
    api.warm("org/model", "org/copy")
    assert freed(api, "org/model") == 0
    assert freed(api, "org/copy") == SIZE
    assert not shared.exists()


def test_what_a_worker_has_open_outlives_its_removal(api: Api, daemon: DaemonProcess) -> None:
    api.warm("org/model")
    with daemon.client() as client:
        export = client.load("org/model")
        api.delete("org/model")
        again = {name: tensor.clone() for name, tensor in export.lm["best_state"].items()}
    assert all(bool((again[name] == export.lm["best_state"][name]).all()) for name in again)
    assert os.listdir(daemon.cache_dir / ".craftcache/manifests") == []
