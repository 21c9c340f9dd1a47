"""What a worker without a daemon believes of what it finds in a cache."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import hf_hub_download

from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.errors import Offline
from craftcache.sources import HubSource
from tests.support.checkpoints import assert_same
from tests.support.clients import FILENAMES, as_root, expected, flip_byte, lm_blob
from tests.support.daemons import EXPORT_FILES

if TYPE_CHECKING:
    from craftcache import Client
    from tests.support.hub import Repo, TestHub


def bytes_read() -> int:
    """What this process has read from files so far."""
    lines = Path("/proc/self/io").read_text("ascii").splitlines()
    return int(lines[0].split()[1])


@pytest.fixture
def published(alone: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client whose cache has the model, and which cannot fetch it again."""
    alone.load("org/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return alone


def test_what_only_trusted_users_can_have_written_is_not_hashed(published: Client) -> None:
    assert published.load("org/model").served_by == "cache"
    read = bytes_read()
    assert published.load("org/model").served_by == "cache"
    hashed = sum(path.stat().st_size for path in EXPORT_FILES.values())
    assert bytes_read() - read < hashed * 2  # loading takes torch one reading


def test_a_write_is_noticed_even_where_size_and_mtime_are_put_back(published: Client) -> None:
    flip_byte(lm_blob(published))
    with pytest.raises(Offline):
        published.load("org/model")


def test_what_was_touched_is_hashed(published: Client) -> None:
    blob = lm_blob(published)
    os.utime(blob, ns=(0, 0))
    assert published.load("org/model").served_by == "cache"
    flip_byte(blob, keep_times=False)
    with pytest.raises(Offline):
        published.load("org/model")


@pytest.mark.parametrize("what", ["blob", "manifest", "directory"])
def test_what_others_may_write_is_hashed_and_fetched_again_where_it_is_wrong(
    published: Client, threaded_hub: TestHub, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    blob = lm_blob(published)
    manifest = CacheDir(published.cache_dir).manifest_path(manifest_key(HubSource("org/model")))
    path = {"blob": blob, "manifest": manifest, "directory": blob.parent}[what]
    flip_byte(blob)
    path.chmod(path.stat().st_mode | 0o022)
    with pytest.raises(Offline):
        published.load("org/model")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    export = published.load("org/model")
    assert export.served_by == "origin"
    assert_same(export.lm, expected("state_dict.bin"))
    assert threaded_hub.count("GET", "*/state_dict.bin", origin="cdn") == 2
    assert threaded_hub.count("GET", "*/compression_state_dict.bin", origin="cdn") == 1


def record_index(cache: CacheDir, planted: Path) -> None:
    """Let the manifest vouch for an index that was planted, as the daemon would for its own."""
    digest = hashlib.sha256(planted.read_bytes()).hexdigest()
    manifest = cache.manifest(HubSource("org/model"))
    assert manifest is not None
    files = tuple(
        replace(file, index_sha256=digest if file.sha256 == planted.stem else None)
        for file in manifest.files
    )
    cache.write_manifest(HubSource("org/model"), replace(manifest, files=files))


@pytest.fixture
def planted(published: Client, tmp_path: Path) -> Path:
    """The index of the model's language model, which does not say what the file holds."""
    from craftcache.checkpoint.index import Index, dump

    blob = lm_blob(published)
    index = Index(
        file_size=blob.stat().st_size,
        format="zip",
        reason=None,
        storages=(),
        tensors=(),
        tree=["d", ["planted"], [True]],
    )
    cache = CacheDir(published.cache_dir)
    cache.write_index(blob.name, dump(index))
    return cache.index_path(blob.name)


def test_an_index_that_the_manifest_vouches_for_is_used(published: Client, planted: Path) -> None:
    record_index(CacheDir(published.cache_dir), planted)
    assert published.load("org/model").lm == {"planted": True}


def test_an_index_that_no_manifest_vouches_for_is_not_used(
    published: Client, planted: Path
) -> None:
    assert_same(published.load("org/model").lm, expected("state_dict.bin"))


@pytest.mark.parametrize("kind", ["index", "directory", "blob", "manifest"])
def test_an_index_that_others_can_have_planted_is_not_used(
    published: Client, planted: Path, kind: str
) -> None:
    if kind in ("blob", "manifest"):  # else nobody but its planter vouches for the index
        record_index(CacheDir(published.cache_dir), planted)
    path = {
        "index": planted,
        "directory": planted.parent,
        "blob": lm_blob(published),
        "manifest": CacheDir(published.cache_dir).manifest_path(
            manifest_key(HubSource("org/model"))
        ),
    }[kind]
    path.chmod(path.stat().st_mode | 0o022)
    export = published.load("org/model")
    assert export.served_by == "cache"
    assert_same(export.lm, expected("state_dict.bin"))


@as_root
@pytest.mark.parametrize("kind", ["index", "blob", "manifest"])
def test_what_belongs_to_another_user_is_not_believed(
    published: Client, planted: Path, kind: str
) -> None:
    if kind in ("blob", "manifest"):  # else nobody but its planter vouches for the index
        record_index(CacheDir(published.cache_dir), planted)
    path = {
        "index": planted,
        "blob": lm_blob(published),
        "manifest": CacheDir(published.cache_dir).manifest_path(
            manifest_key(HubSource("org/model"))
        ),
    }[kind]
    os.chown(path, 54321, -1)
    assert_same(published.load("org/model").lm, expected("state_dict.bin"))


def test_an_index_that_cannot_be_read_costs_only_time(
    published: Client, planted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_index(CacheDir(published.cache_dir), planted)
    planted.write_bytes(b'{"craftcache_index": 99}')
    export = published.load("org/model")
    assert_same(export.lm, expected("state_dict.bin"))
    assert "without its index" in caplog.text


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_a_blob_that_is_no_file_is_no_copy(published: Client, kind: str) -> None:
    blob = lm_blob(published)
    blob.unlink()
    os.mkfifo(blob) if kind == "fifo" else blob.mkdir()
    with pytest.raises(Offline):
        published.load("org/model")


@pytest.fixture
def librarys(base: Path, export_repo: Repo, hub_endpoint: str) -> Path:
    """A cache that huggingface_hub filled."""
    for filename in FILENAMES:
        hf_hub_download("org/model", filename, cache_dir=base / "cache", endpoint=hub_endpoint)
    return base / "cache"


def test_what_the_library_fetched_is_hashed_and_loaded_offline(
    librarys: Path, alone: Client, monkeypatch: pytest.MonkeyPatch, threaded_hub: TestHub
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(threaded_hub.requests)
    export = alone.load("org/model")
    assert export.served_by == "cache"
    assert_same(export.lm, expected("state_dict.bin"))
    path = alone.resolve("org/model", "state_dict.bin")
    assert str(path) == hf_hub_download(
        "org/model", "state_dict.bin", cache_dir=librarys, local_files_only=True
    )
    assert len(threaded_hub.requests) == before
    flip_byte(path.resolve())
    with pytest.raises(Offline):
        alone.load("org/model")


def test_what_the_library_fetched_is_adopted_and_not_fetched_again(
    librarys: Path, alone: Client, threaded_hub: TestHub
) -> None:
    before = threaded_hub.count("GET", origin="cdn")
    export = alone.load("org/model")
    assert export.served_by == "origin"
    assert threaded_hub.count("GET", origin="cdn") == before
    assert alone.load("org/model").served_by == "cache"


def test_a_wrong_blob_of_the_library_is_replaced(librarys: Path, alone: Client) -> None:
    blob = Path(
        hf_hub_download("org/model", "state_dict.bin", cache_dir=librarys, local_files_only=True)
    ).resolve()
    right = flip_byte(blob)
    assert_same(alone.load("org/model").lm, expected("state_dict.bin"))
    assert blob.read_bytes() == right
    assert len(os.listdir(CacheDir(librarys).quarantine)) == 1


def test_a_commit_is_what_was_published_under_its_branch(published: Client) -> None:
    """Whoever swaps the links of a snapshot deceives no load by commit either."""
    revision = published.load("org/model").revision
    pinned = f"org/model@{revision}"
    assert published.load(pinned).served_by == "cache"
    [snapshot] = published.cache_dir.glob("models--org--model/snapshots/*")
    one, two = (snapshot / name for name in FILENAMES)
    targets = one.readlink(), two.readlink()
    for link, target in zip((two, one), targets, strict=True):
        link.unlink()
        link.symlink_to(target)
    with pytest.raises(Offline):
        published.load(pinned)
