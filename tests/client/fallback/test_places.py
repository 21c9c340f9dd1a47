"""Where a worker without a daemon publishes, and what it does where it may not or cannot."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.daemon.transport import Cancellation
from craftcache.errors import StorageFull, Unavailable
from craftcache.fallback.own_fetch import OwnFetchRequest
from craftcache.fallback.resolver import Resolver
from craftcache.sources import HubSource, UrlSource, parse
from tests.support.checkpoints import assert_same, saved
from tests.support.clients import FILENAMES, as_root, assert_nothing_published, expected, ignore
from tests.support.daemons import EXPORT
from tests.support.hub import Data, NoLength

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.hub import Repo, TestHub


def test_a_lock_that_is_held_for_long_is_passed_by_and_nothing_is_published(
    base: Path, export_repo: Repo, hub_endpoint: str
) -> None:
    cache = CacheDir(base / "cache")
    source = HubSource("org/model")
    resolver = Resolver(cache, lock_seconds=0.01)
    etag = export_repo.tree(str(export_repo.resolve("main")))["state_dict.bin"].etag
    with cache.hub_tree("org/model").lock(etag) as is_held:
        assert is_held
        fetched = resolver.fetch(
            source,
            OwnFetchRequest(FILENAMES),
            token=None,
            is_private=False,
            report=ignore,
            cancellation=Cancellation(),
        )
        with fetched.files as files:
            assert [file.info.filename for file in files.files] == list(FILENAMES)
            assert files.revision == export_repo.resolve("main")
    assert "lock" in (fetched.not_kept or "")
    assert_nothing_published(cache.root)


def test_a_lock_of_a_url_is_passed_by_likewise(
    base: Path, threaded_hub: TestHub, hub_endpoint: str
) -> None:
    threaded_hub.files["/one.th"] = Data(saved([1]))
    cache = CacheDir(base / "cache")
    source = parse(threaded_hub.cdn_url("/one.th"))
    assert isinstance(source, UrlSource)
    resolver = Resolver(cache, lock_seconds=0.01)
    with cache.lock(manifest_key(source)):
        fetched = resolver.fetch(
            source,
            OwnFetchRequest(("one.th",)),
            token=None,
            is_private=False,
            report=ignore,
            cancellation=Cancellation(),
        )
    with fetched.files as files:
        revision = files.revision
    assert "lock" in (fetched.not_kept or "")
    assert_nothing_published(cache.root)
    fetched = resolver.fetch(
        source,
        OwnFetchRequest(("one.th",)),
        token=None,
        is_private=False,
        report=ignore,
        cancellation=Cancellation(),
    )
    with fetched.files as files:
        assert files.revision == revision
    assert fetched.not_kept is None


@pytest.mark.parametrize("blocked", ["refs", ".locks", ".craftcache/manifests"])
def test_a_cache_that_cannot_be_written_in_all_places_is_no_obstacle(
    alone: Client, blocked: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CacheDir(alone.cache_dir)
    cache.create()
    path = (
        alone.cache_dir / "models--org--model" / "refs"
        if blocked == "refs"
        else (alone.cache_dir / blocked)
    )
    if path.is_dir():
        path.rmdir()
    path.parent.mkdir(exist_ok=True)
    if blocked == "refs":
        path.symlink_to("/nowhere/disk")  # a plain file would be moved away
    else:
        path.touch()
    assert_same(alone.load("org/model").lm, expected("state_dict.bin"))
    assert "not kept" in caplog.text
    with pytest.raises(Unavailable, match="not kept"):
        alone.warm("org/model")
    assert not os.listdir(cache.staging)


def test_where_no_cache_can_be_written_a_load_still_returns(
    base: Path, export_repo: Repo, hub_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "file").touch()
    (base / "tmp").mkdir()
    monkeypatch.setenv("HF_HOME", str(base / "file" / "hf"))
    monkeypatch.setattr("tempfile.tempdir", str(base / "tmp"))
    client = Client(socket_dir=base / "run", cache_dir=base / "file" / "cache")
    export = client.load("org/model")
    assert export.served_by == "origin"
    assert_same(export.lm, expected("state_dict.bin"))
    for call in (
        lambda: client.resolve("org/model", FILENAMES[0]),
        lambda: client.warm("org/model"),
    ):
        with pytest.raises(Unavailable, match="kept"):
            call()
    assert not os.listdir(base / "tmp")


UNPRIVILEGED = """
import os, sys
from craftcache import Client

shared, throwaway, uid = sys.argv[1:]
Client(socket_dir="/nowhere", cache_dir=throwaway).load("org/model")  # imports all it needs
os.setgroups([])
os.setresgid(int(uid), int(uid), int(uid))
os.setresuid(int(uid), int(uid), int(uid))
client = Client(socket_dir="/nowhere", cache_dir=shared)
print(*client.explain("org/model").steps, sep="; ")
print(client.load("org/model").served_by, client.load("org/model").served_by)
print(*client.explain("org/model").steps, sep="; ")
print(client.resolve("org/model", "state_dict.bin"))
"""


@as_root
def test_who_does_not_own_the_shared_cache_publishes_in_its_own(
    base: Path, export_repo: Repo, hub_endpoint: str
) -> None:
    base.chmod(0o755)
    shared, home = base / "shared", base / "home"
    shared.mkdir(mode=0o755)
    home.mkdir()
    os.chown(home, 54321, 54321)
    printed = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(shared), str(base / "throwaway"), "54321"],
        env=os.environ | {"HOME": str(home), "HF_HOME": str(home / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert printed.returncode == 0, printed.stderr
    own = home / "hf" / "hub"
    before, served, after, path = printed.stdout.splitlines()
    assert served == "origin cache"
    assert f"it is not in {shared} nor in {own}; this process would fetch and verify it" in before
    assert before.endswith(f"by itself, into {own}")
    assert after.endswith(f", in {own}")
    assert f"loading without the daemon, from {shared} and {own}: " in printed.stderr
    assert f"kept in {own}, the cache of its user, as uid 54321 may not write to {shared}" in (
        printed.stderr
    )
    assert Path(path).is_relative_to(home / "hf" / "hub" / "models--org--model")
    assert not os.listdir(shared)


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@as_root
def test_a_full_disk_is_said_before_the_first_byte_or_when_it_comes(
    base: Path, threaded_hub: TestHub, export_repo: Repo, hub_endpoint: str
) -> None:
    size = (EXPORT / "state_dict.bin").stat().st_size
    threaded_hub.files["/endless.th"] = Data(bytes(size))
    with small_disk(base / "disk", 128 * 1024) as disk:
        client = Client(socket_dir=base / "run", cache_dir=disk / "cache")
        with pytest.raises(StorageFull) as caught:
            client.load("org/model", parts=("lm",))
        assert size - 128 * 1024 <= caught.value.missing_bytes <= size
        threaded_hub.inject(NoLength(), origin="cdn")
        with pytest.raises(StorageFull, match="full"):
            client.load_state_dict(threaded_hub.cdn_url("/endless.th"))
        assert_nothing_published(client.cache_dir)


def test_the_bytes_of_the_sample_are_what_the_tests_take_them_for() -> None:
    with zipfile.ZipFile(io.BytesIO((EXPORT / "state_dict.bin").read_bytes())) as archive:
        at = (EXPORT / "state_dict.bin").stat().st_size // 2
        inside = [i for i in archive.infolist() if i.header_offset < at]
        assert "/data/" in inside[-1].filename
