"""Bundles: what a warm would have left, without a network; and nothing else that a tar may hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from craftcache.cache.directory import CacheDir
from craftcache.sources import HubSource
from tests.support.api import Api
from tests.support.appearing import appeared
from tests.support.command import Node, run
from tests.support.daemons import DaemonProcess
from tests.support.hub import Data
from tests.support.trees import hub_tree

from .conftest import SOURCES, members, unpacked_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import WarmNode


def offline_load(cache_dir: Path, *directories: str) -> str:
    """What a load says where the Hub is away."""
    ran = run(*directories, "load", "org/model", "--json", HF_HUB_OFFLINE="1")
    assert ran.code == 0, ran.err
    assert cache_dir.exists()
    return str(ran.json["served_by"])


def assert_imported(node: WarmNode, cache: Path) -> None:
    """All models of the bundle are in the cache as the node's own warm left them."""
    for source in SOURCES:
        assert hub_tree(cache, source) == hub_tree(node.daemon.cache_dir, source)
        mine, theirs = (CacheDir(each).manifest(HubSource(source)) for each in
                        (cache, node.daemon.cache_dir))  # fmt: skip
        assert mine is not None
        assert theirs is not None
        assert replace(mine, files=(), published_at=theirs.published_at) == replace(
            theirs, files=()
        )
        assert {file.index_sha256 for file in mine.files} == {
            file.index_sha256 for file in theirs.files
        }
    assert list((cache / ".craftcache" / "staging").glob("*.tmp")) == []


def test_the_daemon_imports_what_a_warm_would_have_left(
    node: WarmNode, other: Node, bundle: Path
) -> None:
    asked = node.hub.count(None)
    ran = other.run("bundle", "import", str(bundle), "--json")
    assert ran.code == 0, ran.err
    assert [model["source"] for model in ran.json["models"]] == [
        model["source"] for model in json.loads(members(bundle)[0].content)["models"]
    ]
    assert_imported(node, other.daemon.cache_dir)
    with other.daemon.client() as client:
        assert client.load("org/model").served_by == "daemon"
    again = other.run("bundle", "import", str(bundle))
    assert again.code == 0, again.err
    assert_imported(node, other.daemon.cache_dir)
    assert node.hub.count(None) == asked
    assert other.run("lock", "org/model").out.encode() == members(bundle)[0].content


def test_without_a_daemon_this_process_imports_the_same(
    node: WarmNode, bundle: Path, tmp_path: Path
) -> None:
    directories = ("--socket-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"))
    ran = run(*directories, "bundle", "import", str(bundle), HF_ENDPOINT=node.hub.endpoint)
    assert ran.code == 0, ran.err
    assert_imported(node, tmp_path / "cache")
    assert offline_load(tmp_path / "cache", *directories) == "cache"


def test_the_room_of_a_bundle_is_claimed_until_it_is_unpacked(other: Node, tmp_path: Path) -> None:
    size, path = 4_000_000, tmp_path / "models.tar"
    other.hub.repo("org/large").commit({"weights.txt": Data(bytes(size))}, lfs=["weights.txt"])
    for command in (
        ("warm", "--file", "weights.txt", "org/large"),
        ("bundle", "create", str(path), "org/large"),
        ("rm", "org/large"),
    ):
        ran = other.run(*command)
        assert ran.code == 0, ran.err
    whole, seen = path.read_bytes(), list[dict[str, int]]()

    def body() -> Iterator[bytes]:
        yield whole[: size // 2]  # more than the daemon waits for before it unpacks
        appeared(other.daemon.cache_dir / ".craftcache" / "staging", "*.tmp")
        with Api(other.daemon.socket_dir) as api:
            seen.append(api.get("/room"))
        yield whole[size // 2 :]

    socket = str(other.daemon.socket_dir / "craftcache.sock")
    transport = httpx.HTTPTransport(uds=socket)
    with httpx.Client(transport=transport, timeout=60) as client:
        assert client.post("http://craftcache/v1/bundles", content=body()).is_success
    with Api(other.daemon.socket_dir) as api:
        seen.append(api.get("/room"))
    # What is on the disk of it is counted once.
    assert [(room["claimed"], room["used"]) for room in seen] == [(size, 0), (0, size)]
    assert unpacked_files(other.daemon.cache_dir) == []


def test_a_bundle_that_the_quota_has_no_room_for_is_refused(base: Path, bundle: Path) -> None:
    with DaemonProcess(base, "--max-bytes", "1000") as daemon:
        directories = ("--socket-dir", str(daemon.socket_dir), "--cache-dir", str(daemon.cache_dir))
        ran = run(*directories, "bundle", "import", str(bundle), "--json")
        assert ran.problem["code"] == "StorageFull"
        assert ran.problem["missing_bytes"] > 0
        assert unpacked_files(daemon.cache_dir) == []


@pytest.mark.parametrize("harm", ["rotten", "gone"])
def test_a_file_that_is_not_what_it_was_goes_into_no_bundle(
    harm: str, bundle: Path, tmp_path: Path
) -> None:
    """Without a daemon, which may find it first and remove the model."""
    directories = ("--socket-dir", str(tmp_path / "none"), "--cache-dir", str(tmp_path / "cache"))
    assert run(*directories, "bundle", "import", str(bundle)).code == 0
    cache = CacheDir(tmp_path / "cache")
    manifest = cache.manifest(HubSource("org/model"))
    assert manifest is not None
    harmed = cache.path(manifest.files[0])
    if harm == "gone":
        harmed.unlink()
    else:
        harmed.chmod(0o644)
        harmed.write_bytes(bytes(harmed.stat().st_size))
    (tmp_path / "bundles").mkdir()
    target = tmp_path / "bundles" / "models.tar"
    target.write_bytes(b"the one before")
    ran = run(*directories, "bundle", "create", str(target), "org/model", "--json")
    assert ran.problem["code"] == {"rotten": "IntegrityError", "gone": "NotFound"}[harm]
    assert manifest.files[0].path in ran.problem["detail"]
    assert target.read_bytes() == b"the one before"
    assert list(target.parent.iterdir()) == [target]


def test_equal_models_make_equal_bundles(node: WarmNode, bundle: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    assert node.run("bundle", "create", str(again), "org/model").code == 0
    assert again.read_bytes() == bundle.read_bytes()


def test_what_cannot_be_written_is_said(node: WarmNode, tmp_path: Path) -> None:
    absent = node.run("bundle", "create", str(tmp_path / "no" / "models.tar"), "org/model")
    assert absent.code == 1
    assert "Traceback" not in absent.err
    assert str(tmp_path) in absent.err
