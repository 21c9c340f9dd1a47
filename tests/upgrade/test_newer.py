"""A cache and records that a later release wrote: refused with a sentence, and left as they are."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from craftcache.cache.cache_format import check_format, newer_format
from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.cache.sealed import seal
from craftcache.errors import Unavailable
from craftcache.sources import HubSource
from craftcached.database import Database, check_version
from tests.support.api import Api
from tests.support.checkpoints import assert_same
from tests.support.clients import expected
from tests.support.daemons import DaemonProcess

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import Repo, TestHub


def all_below(root: Path) -> dict[str, tuple[object, ...]]:
    """Every name below a directory, and what stands there."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            path.lstat().st_ino,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(root.rglob("*"))
    }


def refused(base: Path) -> str:
    """What the daemon says before it ends, having changed nothing."""
    before = all_below(base)
    daemon = DaemonProcess(base)
    with contextlib.ExitStack() as stack:
        stack.push(daemon)  # left and not entered: it never serves
        daemon.spawn()
        assert daemon.wait() == 1
    after = all_below(base)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("run") for name in after.keys() - before.keys())
    return daemon.log


def newer_cache(base: Path) -> CacheDir:
    cache = CacheDir(base / "cache")
    cache.create()
    (cache.private / "format.json").write_bytes(seal({"version": 2, "written_by": "9.0.0"}))
    return cache


def test_a_newer_cache_is_refused_and_left_alone(base: Path) -> None:
    newer_cache(base)
    log = refused(base)
    assert "a newer release wrote the cache" in log
    assert "it has format 2" in log
    assert "Install that release again, or give this one another cache_dir" in log


def test_a_newer_manifest_is_refused_too(base: Path) -> None:
    cache = CacheDir(base / "cache")
    cache.create()
    path = cache.manifest_path("a" * 64)
    path.write_bytes(seal({"version": 2, "key": "a" * 64, "parts": []}))
    assert "the manifest aaaa" in refused(base)
    damaged = json.loads(path.read_bytes()) | {"parts": [1]}
    path.write_text(json.dumps(damaged))
    check_format(cache)  # damaged, and no word of another release


def test_one_newer_manifest_in_a_cache_of_ours_stops_nothing_but_itself(
    base: Path, threaded_hub: TestHub, export_repo: Repo
) -> None:
    """Nor is it touched, before its model is asked for."""
    with DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as daemon:
        with daemon.client() as client:
            client.load("org/model")
        path = CacheDir(daemon.cache_dir).manifest_path(manifest_key(HubSource("org/model")))
        daemon.terminate()
        fetched = threaded_hub.count("GET", "*/state_dict.bin", origin="cdn")
        document = json.loads(path.read_bytes()) | {"version": 2}
        del document["checksum"]
        newer = seal(document)
        path.write_bytes(newer)
        daemon.start()
        with Api(daemon.socket_dir) as api:
            (found,) = api.request("POST", "/verify").json()["results"]
            assert (found["source"], found["part"], found["outcome"]) == (
                "org/model",
                "manifest",
                "wrong",
            )
            assert "a version that this release does not know" in found["failure"]["detail"]
            assert "craftcache warm org/model" in found["failure"]["hint"]
            assert path.read_bytes() == newer
            with daemon.client() as client:
                assert_same(client.load("org/model").lm, expected("state_dict.bin"))
            assert api.request("POST", "/verify").json()["found"] == {"right": 2}
    assert threaded_hub.count("GET", "*/state_dict.bin", origin="cdn") == fetched


def test_newer_records_are_refused_and_left_alone(base: Path) -> None:
    (base / "state").mkdir()
    with sqlite3.connect(base / "state" / "craftcached.sqlite") as records:
        records.execute("CREATE TABLE pins (name TEXT)")
        records.execute("PRAGMA user_version = 2")
    records.close()
    log = refused(base)
    assert "a newer release wrote" in log
    assert "it has version 2" in log
    assert not (base / "cache").exists()


async def test_newer_records_whose_version_stands_in_the_log_yet(tmp_path: Path) -> None:
    path = tmp_path / "craftcached.sqlite"
    async with Database(tmp_path):
        pass
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    writer.execute("PRAGMA user_version = 7")
    check_version(tmp_path)  # the file itself says nothing of it yet
    with pytest.raises(Unavailable, match="it has version 7"):
        async with Database(tmp_path):
            pass
    writer.close()
    with pytest.raises(Unavailable, match="it has version 7"):
        check_version(tmp_path)


def test_a_format_that_is_damaged_or_lacks_is_written_anew(base: Path) -> None:
    cache = newer_cache(base)
    path = cache.private / "format.json"
    for damage in (b"", b"[]", path.read_bytes().replace(b"2", b"3", 1), b'{"version": 9}'):
        path.write_bytes(damage)
        assert newer_format(cache) is None
        with DaemonProcess(base):
            assert json.loads(path.read_bytes())["version"] == 1


def test_a_worker_alone_keeps_nothing_in_a_newer_cache(
    base: Path, threaded_hub: TestHub, export_repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = newer_cache(base)
    before = all_below(cache.root)
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)
    with Client(socket_dir=base / "none", cache_dir=cache.root) as alone:
        export = alone.load("org/model")
    assert export.served_by == "origin"
    assert_same(export.lm, expected("state_dict.bin"))
    assert all_below(cache.root) == before
