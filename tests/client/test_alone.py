"""A worker without a daemon: what it fetches, verifies, publishes, and what it leaves behind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import hf_hub_download

from checkpoints import assert_same, saved
from craftcache import Client
from craftcache.alone.resolver import Resolver
from craftcache.alone.stream import Download, download
from craftcache.errors import (
    IntegrityError,
    NotACheckpoint,
    NotFound,
    Offline,
    PolicyDenied,
    StorageFull,
    Unavailable,
    UnsafeCheckpoint,
)
from craftcache.layout.cache import CacheDir
from craftcache.layout.manifest import manifest_key
from craftcache.policy import UrlPolicy
from craftcache.sources import HubSource, parse
from craftcache.transport import Withdrawal
from craftcache.verify import Promise
from daemons import EXPORT, EXPORT_FILES
from hub import CloseEarly, Data, FlipBit, NoLength, Redirect, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from craftcache.wire import Progress
    from hub import Repo, TestHub

FILENAMES = tuple(EXPORT_FILES)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


def expected(filename: str) -> Any:
    return torch.load(EXPORT / filename, weights_only=True)


def tree_of(directory: Path) -> dict[str, str]:
    """All names below ``directory`` but ours, with what links lead to and files hold."""
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes().hex()
        for path in directory.rglob("*")
        if not path.is_dir() and ".craftcache" not in path.parts
    }


def assert_nothing_published(cache_dir: Path) -> None:
    cache = CacheDir(cache_dir)
    assert not list(cache.manifests())
    assert not os.listdir(cache.staging)
    assert not list(cache_dir.glob("models--*/refs/*"))
    assert not list(cache_dir.glob("models--*/blobs/*"))
    assert not list(cache_dir.glob(".craftcache/blobs/sha256/*"))


class Gadget:
    """Its pickle runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def ignore(_progress: Progress) -> None:
    """Nobody watches."""


# --- What is published ---


def test_what_it_publishes_is_what_huggingface_hub_would_have_written(
    alone: Client, base: Path, export_repo: Repo, hub_endpoint: str
) -> None:
    export = alone.load("org/model")
    assert export.served_by == "origin"
    assert export.revision == export_repo.resolve("main")
    theirs = base / "theirs"
    for filename in FILENAMES:
        path = hf_hub_download("org/model", filename, cache_dir=theirs, endpoint=hub_endpoint)
        ours = hf_hub_download(
            "org/model", filename, cache_dir=alone.cache_dir, local_files_only=True
        )
        assert Path(ours).relative_to(alone.cache_dir) == Path(path).relative_to(theirs)
        assert alone.resolve("org/model", filename) == Path(ours)
    assert tree_of(alone.cache_dir) == tree_of(theirs)
    assert not os.listdir(CacheDir(alone.cache_dir).staging)


def test_what_it_published_is_served_again_without_a_request(
    alone: Client, threaded_hub: TestHub
) -> None:
    alone.load("org/model")
    before = len(threaded_hub.requests)
    again = alone.load("org/model")
    assert again.served_by == "cache"
    assert_same(again.lm, expected("state_dict.bin"))
    assert len(threaded_hub.requests) == before


def test_a_load_serves_what_was_warmed_last_and_a_warm_asks(
    alone: Client, export_repo: Repo
) -> None:
    old = alone.load("org/model").revision
    new = export_repo.commit({"state_dict.bin": saved({"best_state": {"w": torch.ones(3)}})})
    assert alone.load("org/model").revision == old
    (warmed,) = alone.warm("org/model")
    assert (warmed.served_by, warmed.revision) == ("origin", new)
    codec = (EXPORT / "compression_state_dict.bin").stat().st_size
    assert warmed.bytes_reused == codec
    assert torch.equal(alone.load("org/model").lm["best_state"]["w"], torch.ones(3))


def test_progress_is_reported_and_what_it_raises_ends_the_fetch(alone: Client) -> None:
    seen: list[Progress] = []
    alone.warm("org/model", on_progress=seen.append)
    assert {(p.state, p.file) for p in seen} >= {("fetching", name) for name in FILENAMES}
    last = [p for p in seen if p.state == "fetching" and p.file == "state_dict.bin"][-1]
    assert last.done == last.total == (EXPORT / "state_dict.bin").stat().st_size

    def stop(_progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        alone.warm("org/model", on_progress=stop)
    assert not os.listdir(CacheDir(alone.cache_dir).staging)


def test_two_names_of_one_content_are_fetched_once_and_published(
    alone: Client, threaded_hub: TestHub
) -> None:
    content = saved({"best_state": {"w": torch.ones(2)}})
    threaded_hub.repo("org/twins").commit(dict.fromkeys(FILENAMES, content))
    assert alone.load("org/twins").served_by == "origin"
    assert alone.load("org/twins").served_by == "cache"
    assert threaded_hub.count("GET", "*/org/twins/*", origin="cdn") == 1


def test_a_file_that_is_no_export_is_loaded_by_its_name(
    alone: Client, threaded_hub: TestHub
) -> None:
    state = {"weights": torch.arange(5)}
    threaded_hub.repo("org/mbd").commit({"sub/model.th": saved(state)})
    assert_same(alone.load_state_dict("org/mbd", "sub/model.th"), state)
    assert_same(alone.load_state_dict("org/mbd@main", "sub/model.th"), state)


# --- URLs ---


def test_a_url_is_one_checkpoint_or_an_export(alone: Client, threaded_hub: TestHub) -> None:
    state = {"weights": torch.arange(5)}
    threaded_hub.files["/one.th"] = Data(saved(state))
    for filename, path in EXPORT_FILES.items():
        threaded_hub.files[f"/run/{filename}"] = Data(path.read_bytes())
    assert_same(alone.load_state_dict(threaded_hub.cdn_url("/one.th")), state)
    assert_same(alone.load_state_dict(threaded_hub.cdn_url("/one.th"), "ignored.th"), state)
    export = alone.load(threaded_hub.cdn_url("/run/"))
    assert_same(export.lm, expected("state_dict.bin"))
    again = alone.load(threaded_hub.cdn_url("/run/state_dict.bin"))
    assert (again.served_by, again.revision) == ("cache", export.revision)
    assert len(export.revision) == 40
    assert (
        alone.resolve(threaded_hub.cdn_url("/run/"), "state_dict.bin").read_bytes()
        == (EXPORT / "state_dict.bin").read_bytes()
    )


def test_a_digest_in_a_url_is_checked_whatever_is_cached(
    alone: Client, threaded_hub: TestHub
) -> None:
    content = Data(saved({"weights": torch.arange(5)}))
    threaded_hub.files["/one.th"] = content
    threaded_hub.files[f"/one-{content.sha256[:8]}.th"] = content
    threaded_hub.files["/one-00000000.th"] = content
    url = threaded_hub.cdn_url("/one.th")
    for good in (url, f"{url}#sha256={content.sha256}", f"/one-{content.sha256[:8]}.th"):
        alone.load_state_dict(good if "://" in good else threaded_hub.cdn_url(good))
    for bad in (f"{url}#sha256={'0' * 64}", threaded_hub.cdn_url("/one-00000000.th")):
        with pytest.raises(IntegrityError) as caught:
            alone.load_state_dict(bad)
        assert caught.value.__cause__ is None


def test_a_signed_query_is_in_no_error_and_no_manifest(
    alone: Client, threaded_hub: TestHub, caplog: pytest.LogCaptureFixture
) -> None:
    threaded_hub.files["/one.th"] = Data(b"garbage")
    with pytest.raises(NotACheckpoint) as caught:
        alone.load_state_dict(threaded_hub.cdn_url("/one.th") + "?sig=secret")
    threaded_hub.files["/one.th"] = Data(saved({}))
    alone.load_state_dict(threaded_hub.cdn_url("/one.th") + "?sig=secret")
    (manifest,) = CacheDir(alone.cache_dir).manifests()
    for text in (str(caught.value), repr(caught.value), caplog.text, str(manifest)):
        assert "secret" not in text


# --- What is refused ---


def test_a_flipped_bit_is_refused_and_nothing_is_published(
    alone: Client, threaded_hub: TestHub
) -> None:
    rule = threaded_hub.inject(FlipBit(1000), path="*/state_dict.bin", origin="cdn", times=None)
    with pytest.raises(IntegrityError) as caught:
        alone.load("org/model")
    assert caught.value.source == "org/model"
    assert rule.used == 1
    assert_nothing_published(alone.cache_dir)
    rule.cancel()
    assert_same(alone.load("org/model").lm, expected("state_dict.bin"))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (saved(Gadget()), UnsafeCheckpoint),
        (b"no checkpoint at all", NotACheckpoint),
        (saved({"w": torch.ones(9)})[:-100], NotACheckpoint),
    ],
    ids=["gadget", "garbage", "truncated"],
)
@pytest.mark.parametrize("comes_from", ["origin", "library"])
def test_what_cannot_be_loaded_safely_is_not_published(
    alone: Client,
    threaded_hub: TestHub,
    hub_endpoint: str,
    content: bytes,
    error: type[Exception],
    comes_from: str,
) -> None:
    threaded_hub.repo("org/bad").commit({"state_dict.bin": content})
    if comes_from == "library":
        hf_hub_download(
            "org/bad", "state_dict.bin", cache_dir=alone.cache_dir, endpoint=hub_endpoint
        )
    with pytest.raises(error) as caught:
        alone.load("org/bad", parts=("lm",))
    assert "org/bad" in str(caught.value)
    assert not list(CacheDir(alone.cache_dir).manifests())
    if comes_from == "origin":
        assert_nothing_published(alone.cache_dir)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("org/missing", NotFound),
        ("org/model@missing", NotFound),
        ("https://127.0.0.1:1/x.th", Unavailable),
    ],
)
def test_what_does_not_exist_is_said_by_name(
    alone: Client, source: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        alone.load_state_dict(source, "state_dict.bin")
    assert source in str(caught.value)
    assert_nothing_published(alone.cache_dir)


@pytest.mark.parametrize(
    ("status", "error", "retryable"),
    [
        (403, "AccessDenied", False),
        (404, "NotFound", False),
        (429, "Unavailable", True),
        (500, "Unavailable", True),
        (418, "Unavailable", False),
    ],
)
def test_what_an_origin_answers_decides_the_error(
    alone: Client, threaded_hub: TestHub, status: int, error: str, retryable: bool
) -> None:
    threaded_hub.inject(Status(status, {"Retry-After": "7"}), origin="cdn")
    with pytest.raises(Exception, match=f"answers {status}") as caught:
        alone.load_state_dict(threaded_hub.cdn_url("/x.th"))
    assert type(caught.value).__name__ == error
    assert getattr(caught.value, "retryable", None) == retryable
    if error == "Unavailable":
        assert getattr(caught.value, "retry_after", None) == 7


def test_a_body_that_ends_early_is_no_file(alone: Client, threaded_hub: TestHub) -> None:
    threaded_hub.inject(CloseEarly(1000), path="*/state_dict.bin", origin="cdn")
    with pytest.raises(Unavailable) as caught:
        alone.load("org/model")
    assert caught.value.retryable
    assert_nothing_published(alone.cache_dir)


def test_a_body_that_ends_early_without_a_word_is_no_file(
    alone: Client, threaded_hub: TestHub
) -> None:
    threaded_hub.inject(
        NoLength(chunked=False), CloseEarly(1000), path="*/state_dict.bin", origin="cdn"
    )
    with pytest.raises(Unavailable):
        alone.load("org/model")
    assert_nothing_published(alone.cache_dir)


def test_offline_nothing_is_asked(
    alone: Client, threaded_hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for call in (alone.load, alone.warm):
        with pytest.raises(Offline):
            call("org/model")
    assert not threaded_hub.requests


def test_a_watch_is_known_to_the_daemon_alone(alone: Client) -> None:
    with pytest.raises(Unavailable, match="only the daemon"):
        alone.load("watch:run")


# --- Redirects and credentials ---


def test_credentials_go_to_the_hub_and_not_to_where_it_redirects(
    alone: Client, threaded_hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    threaded_hub.repo("org/gated", gated=True).commit(EXPORT_FILES)
    threaded_hub.grant("hf_secret", "org/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert_same(alone.load("org/gated").lm, expected("state_dict.bin"))
    assert threaded_hub.count("GET", origin="cdn") == 2
    assert threaded_hub.tokens_at_cdn == []
    at_hub = threaded_hub.matching("/org/gated/*", origin="hub")
    assert {request.authorization for request in at_hub} == {"Bearer hf_secret"}


def test_every_address_of_a_redirect_is_checked_before_it_is_asked(
    threaded_hub: TestHub, tmp_path: Path
) -> None:
    threaded_hub.inject(Redirect(threaded_hub.cdn_url("/x.th")), origin="hub")
    asked: list[str] = []

    def only_the_hub(url: str) -> None:
        asked.append(url)
        if not url.startswith(threaded_hub.endpoint):
            raise PolicyDenied("not there", source=url)

    wanted = Download("a source", f"{threaded_hub.endpoint}/x.th", Promise())
    with pytest.raises(PolicyDenied) as caught:
        download(
            wanted,
            staging=tmp_path,
            check_url=only_the_hub,
            report=lambda *_: None,
            withdrawal=Withdrawal(),
        )
    assert caught.value.source == "a source"
    assert asked == [wanted.url, threaded_hub.cdn_url("/x.th")]
    assert threaded_hub.count("GET", origin="cdn") == 0
    assert not os.listdir(tmp_path)


def test_an_endless_redirect_ends(alone: Client, threaded_hub: TestHub) -> None:
    url = threaded_hub.cdn_url("/loop.th")
    threaded_hub.inject(Redirect(url), origin="cdn", times=None)
    with pytest.raises(Unavailable):
        alone.load_state_dict(url)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://anywhere/x", True),
        ("http://inside:8080/x", True),
        ("http://inside.example/x", False),
        ("http://hub.example/x", False),
        ("ftp://inside/x", False),
        ("https:///x", False),
    ],
)
def test_plain_http_is_for_hosts_that_are_named(url: str, allowed: bool) -> None:
    policy = UrlPolicy(insecure_hosts=frozenset({"inside"}), hub_endpoint="https://hub.example")
    if allowed:
        policy.check_url(url)
        return
    with pytest.raises(PolicyDenied):
        policy.check_url(url)


def test_plain_http_is_refused_before_anything_is_asked(
    alone: Client, threaded_hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    monkeypatch.delenv("CRAFTCACHE_INSECURE_HOSTS", raising=False)
    url = threaded_hub.cdn_url("/x.th")
    with pytest.raises(PolicyDenied):
        alone.load_state_dict(url)
    assert not threaded_hub.requests
    threaded_hub.files["/x.th"] = Data(saved([1]))
    monkeypatch.setenv("CRAFTCACHE_INSECURE_HOSTS", "127.0.0.1")
    assert alone.load_state_dict(url) == [1]


# --- What is believed ---


@pytest.fixture
def published(alone: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client whose cache has the model, and which cannot fetch it again."""
    alone.load("org/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return alone


def lm_blob(client: Client) -> Path:
    return client.resolve("org/model", "state_dict.bin").resolve()


def flip_byte(path: Path, *, keep_times: bool = True) -> bytes:
    """Change one byte of the weights in place; returns what the file held."""
    status = path.stat()
    held = path.read_bytes()
    at = len(held) // 2
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([held[at] ^ 1]))
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return held


def test_what_only_trusted_users_can_have_written_is_not_hashed(published: Client) -> None:
    flip_byte(lm_blob(published))
    assert published.load("org/model").served_by == "cache"


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


def test_an_index_of_a_trusted_owner_is_used(published: Client, planted: Path) -> None:
    assert published.load("org/model").lm == {"planted": True}


@pytest.mark.parametrize("kind", ["index", "directory", "blob", "manifest"])
def test_an_index_that_others_can_have_planted_is_not_used(
    published: Client, planted: Path, kind: str
) -> None:
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


# --- What huggingface_hub left there ---


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


# --- Where it may not or cannot publish ---


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
            source, FILENAMES, token=None, is_private=False, report=ignore, withdrawal=Withdrawal()
        )
        with fetched.files as files:
            assert set(files.files) == set(FILENAMES)
            assert files.revision == export_repo.resolve("main")
    assert "lock" in (fetched.not_kept or "")
    assert_nothing_published(cache.root)


def test_a_lock_of_a_url_is_passed_by_likewise(
    base: Path, threaded_hub: TestHub, hub_endpoint: str
) -> None:
    threaded_hub.files["/one.th"] = Data(saved([1]))
    cache = CacheDir(base / "cache")
    source = parse(threaded_hub.cdn_url("/one.th"))
    resolver = Resolver(cache, lock_seconds=0.01)
    with cache.lock(manifest_key(source)):
        fetched = resolver.fetch(
            source, ["one.th"], token=None, is_private=False, report=ignore, withdrawal=Withdrawal()
        )
    with fetched.files as files:
        revision = files.revision
    assert "lock" in (fetched.not_kept or "")
    assert_nothing_published(cache.root)
    fetched = resolver.fetch(
        source, ["one.th"], token=None, is_private=False, report=ignore, withdrawal=Withdrawal()
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
print(client.load("org/model").served_by, client.load("org/model").served_by)
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
    served, path = printed.stdout.splitlines()
    assert served == "origin cache"
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
