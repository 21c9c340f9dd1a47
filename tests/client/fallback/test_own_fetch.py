"""A worker without a daemon: what it fetches, and what it publishes of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from huggingface_hub import hf_hub_download

from craftcache.cache.directory import CacheDir
from craftcache.errors import IntegrityError, NotACheckpoint
from tests.support.checkpoints import assert_same, saved
from tests.support.clients import FILENAMES, expected, tree_of
from tests.support.daemons import EXPORT, EXPORT_FILES
from tests.support.hub import Data, FlipBit

if TYPE_CHECKING:
    from craftcache import Client
    from craftcache.wire import Progress
    from tests.support.hub import Repo, Request, TestHub


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


def test_what_a_cache_on_the_way_holds_wrong_is_passed_by(
    alone: Client, threaded_hub: TestHub, export_repo: Repo
) -> None:
    def is_first(request: Request) -> bool:
        return request.headers.get("Cache-Control") != "no-cache"

    threaded_hub.inject(FlipBit(9), origin="cdn", when=is_first, times=None)
    assert_same(alone.load("org/model").lm, expected("state_dict.bin"))
    assert len(threaded_hub.matching("*/state_dict.bin", origin="cdn")) == 2


def test_wrong_bytes_are_an_error_that_says_how_often_and_what(
    alone: Client, threaded_hub: TestHub, export_repo: Repo
) -> None:
    threaded_hub.inject(FlipBit(9), origin="cdn", times=None)
    with pytest.raises(IntegrityError, match=r"fetched twice, .* with the same result") as caught:
        alone.load("org/model")
    assert caught.value.source == "org/model"
