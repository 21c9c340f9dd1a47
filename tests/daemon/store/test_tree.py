"""What stands in the cache directory is what unmodified huggingface_hub would have written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir

from tests.support.checkpoints import saved
from tests.support.daemons import EXPORT_FILES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

PAIR = tuple(EXPORT_FILES)

SMALL = {"state_dict.bin": saved({"best_state": {}}), "compression_state_dict.bin": saved({})}
"""Checkpoints that the Hub keeps in git itself, known by their git-sha1."""


def tree(cache_dir: Path) -> dict[str, tuple[object, ...]]:
    """All below a cache directory but what is ours: modes, link targets and bytes, by path."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(cache_dir.rglob("*")):
        name = path.relative_to(cache_dir).as_posix()
        if name.split("/")[0] == ".craftcache":
            continue
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_dir():
            found[name] = ("directory", oct(mode))
        elif path.suffix == ".lock":  # its mode is filelock's, whose releases differ
            found[name] = ("file", path.read_bytes())
        else:
            found[name] = ("file", oct(mode), path.read_bytes())
    return found


def download(
    hub: TestHub, cache_dir: Path, *, files: Iterable[str] = PAIR, revision: str = "main"
) -> None:
    """What unmodified AudioCraft does."""
    for filename in files:
        hf_hub_download(
            "org/model", filename, revision=revision, cache_dir=cache_dir, endpoint=hub.endpoint
        )


@pytest.mark.parametrize("size", ["lfs", "small"])
@pytest.mark.parametrize("revision", ["main", "feature/branch", "v1.0", "commit"])
def test_a_warmed_tree_is_the_librarys_own(
    api: Api,
    daemon: DaemonProcess,
    threaded_hub: TestHub,
    export_repo: Repo,
    tmp_path: Path,
    revision: str,
    size: str,
) -> None:
    if size == "small":
        export_repo.commit(SMALL, lfs=())
    commit = export_repo.resolve("main") or ""
    export_repo.branch("feature/branch", commit)
    export_repo.tag("v1.0", commit)
    revision = commit if revision == "commit" else revision
    download(threaded_hub, tmp_path, revision=revision)
    response = api.warm(f"org/model@{revision}")
    assert response.status_code == 200, response.text
    assert tree(daemon.cache_dir) == tree(tmp_path)


def test_files_in_folders_of_a_repository_stand_as_the_library_puts_them(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo, tmp_path: Path
) -> None:
    name = "codecs/32khz/model.th"
    export_repo.commit({name: SMALL["state_dict.bin"]})
    download(threaded_hub, tmp_path, files=[name])
    assert api.warm("org/model", files=(name,)).status_code == 200
    assert tree(daemon.cache_dir) == tree(tmp_path)


def test_after_main_moved_the_tree_is_the_librarys_own_too(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo, tmp_path: Path
) -> None:
    for files in ({}, SMALL):
        export_repo.commit(files, lfs=())
        download(threaded_hub, tmp_path)
        assert api.warm("org/model").status_code == 200
    assert tree(daemon.cache_dir) == tree(tmp_path)


def test_unmodified_programs_find_both_files_offline(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    api.warm("org/model")
    before = len(threaded_hub.requests)
    program = f"""
from huggingface_hub import hf_hub_download
for name in {PAIR}:
    print(hf_hub_download("org/model", name, cache_dir={str(daemon.cache_dir)!r},
                          local_files_only=True))
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": threaded_hub.endpoint}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    for name, path in zip(PAIR, run.stdout.splitlines(), strict=True):
        with open(path, "rb") as file:
            assert file.read() == EXPORT_FILES[name].read_bytes()
    assert len(threaded_hub.requests) == before


def test_a_library_that_is_online_has_nothing_left_to_fetch(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    api.warm("org/model")
    before = threaded_hub.count("GET")
    download(threaded_hub, daemon.cache_dir)
    assert threaded_hub.count("GET") == before


def test_the_librarys_scan_finds_nothing_wrong(api: Api, daemon: DaemonProcess) -> None:
    api.warm("org/model")
    scanned = scan_cache_dir(daemon.cache_dir)
    (repo,) = scanned.repos
    assert repo.repo_id == "org/model"
    assert repo.refs.keys() == {"main"}
    assert repo.size_on_disk == sum(path.stat().st_size for path in EXPORT_FILES.values())
    assert [str(warning) for warning in scanned.warnings if ".craftcache" not in str(warning)] == []


def test_what_the_library_downloaded_is_verified_and_not_fetched_again(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    download(threaded_hub, daemon.cache_dir)
    before = threaded_hub.count("GET")
    (result,) = api.warm("org/model").json()["results"]
    assert threaded_hub.count("GET") == before
    assert result["bytes_fetched"] == 0
    assert result["bytes_reused"] == sum(path.stat().st_size for path in EXPORT_FILES.values())
    with daemon.client() as client:
        assert client.load("org/model").served_by == "daemon"


@pytest.mark.parametrize("size", ["lfs", "small"])
def test_a_wrong_blob_of_the_librarys_is_set_aside_and_replaced(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo, size: str
) -> None:
    if size == "small":
        export_repo.commit(SMALL, lfs=())
    download(threaded_hub, daemon.cache_dir)
    path = daemon.cache_dir / "models--org--model/snapshots"
    path = path / (export_repo.resolve("main") or "") / "state_dict.bin"
    good = path.read_bytes()
    bad = good[:-1] + bytes([good[-1] ^ 1])
    path.resolve().write_bytes(bad)
    before = threaded_hub.count("GET", "*state_dict.bin")
    response = api.warm("org/model")
    assert response.status_code == 200, response.text
    assert path.read_bytes() == good
    assert threaded_hub.count("GET", "*state_dict.bin") > before
    (quarantined,) = (daemon.cache_dir / ".craftcache/quarantine").iterdir()
    assert quarantined.read_bytes() == bad


def share_blob(cache_dir: Path, blob: Path, xet_hash: str) -> Path:
    """Put a blob where huggingface_hub keeps what came over Xet, with a link in its old place."""
    shared = cache_dir / "blobs" / xet_hash[:2] / xet_hash
    shared.parent.mkdir(parents=True)
    (cache_dir / "blobs/.huggingface-shared-blobs").write_text("1\n")
    blob.rename(shared)
    shared.chmod(0o444)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    shared.with_name(f"{xet_hash}.refs").write_text(f"{blob.relative_to(cache_dir)}\n")
    return shared


@pytest.fixture
def shared_blob(daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo) -> Path:
    """The language model of org/model in the library's store that all repositories share."""
    download(threaded_hub, daemon.cache_dir)
    pointer = daemon.cache_dir / "models--org--model/snapshots"
    pointer = pointer / (export_repo.resolve("main") or "") / "state_dict.bin"
    return share_blob(daemon.cache_dir, pointer.resolve(), "ab" * 32)


def identity(path: Path) -> tuple[int, ...]:
    """What tells one file from another and a changed one from its former self, but for reading."""
    status = path.stat()
    return (status.st_dev, status.st_ino, status.st_mode, status.st_uid, status.st_ctime_ns)


def test_a_blob_in_the_librarys_shared_store_is_adopted_where_it_is(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, shared_blob: Path
) -> None:
    before = threaded_hub.count("GET")
    untouched = identity(shared_blob)
    response = api.warm("org/model")
    assert response.status_code == 200, response.text
    assert threaded_hub.count("GET") == before
    assert identity(shared_blob) == untouched
    with daemon.client() as client:
        assert client.load("org/model").served_by == "daemon"


def test_a_wrong_blob_in_the_shared_store_is_replaced_and_never_written_through(
    api: Api, daemon: DaemonProcess, shared_blob: Path, export_repo: Repo
) -> None:
    bad = shared_blob.read_bytes()[:-1] + b"?"
    shared_blob.write_bytes(bad)
    assert api.warm("org/model").status_code == 200
    assert shared_blob.read_bytes() == bad
    pointer = daemon.cache_dir / "models--org--model/snapshots"
    pointer = pointer / (export_repo.resolve("main") or "") / "state_dict.bin"
    assert pointer.read_bytes() == EXPORT_FILES["state_dict.bin"].read_bytes()
    assert not (pointer.parent / os.readlink(pointer)).is_symlink()


def test_another_repository_shares_the_bytes_of_a_blob_in_the_shared_store(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, shared_blob: Path
) -> None:
    api.warm("org/model")
    commit = threaded_hub.repo("org/copy").commit(EXPORT_FILES)
    before = threaded_hub.count("GET")
    response = api.warm("org/copy")
    assert response.status_code == 200, response.text
    assert threaded_hub.count("GET") == before
    pointer = daemon.cache_dir / "models--org--copy/snapshots" / commit / "state_dict.bin"
    assert pointer.stat().st_ino == shared_blob.stat().st_ino
