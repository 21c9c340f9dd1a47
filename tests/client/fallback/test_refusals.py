"""What a worker without a daemon does not take, does not ask and tells nobody."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import hf_hub_download

from craftcache.cache.directory import CacheDir
from craftcache.daemon.transport import Cancellation
from craftcache.digests import Promise
from craftcache.errors import (
    IntegrityError,
    NotACheckpoint,
    NotFound,
    Offline,
    PolicyDenied,
    Unavailable,
    UnsafeCheckpoint,
)
from craftcache.fallback.stream import Download, download
from craftcache.origins.policy import UrlPolicy
from tests.support.checkpoints import assert_same, saved
from tests.support.clients import assert_nothing_published, expected
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import CloseEarly, Data, FlipBit, NoLength, Redirect, Status

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache import Client
    from tests.support.hub import TestHub


class Gadget:
    """Its pickle runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_a_flipped_bit_is_refused_and_nothing_is_published(
    alone: Client, threaded_hub: TestHub
) -> None:
    rule = threaded_hub.inject(FlipBit(1000), path="*/state_dict.bin", origin="cdn", times=None)
    with pytest.raises(IntegrityError) as caught:
        alone.load("org/model")
    assert caught.value.source == "org/model"
    assert rule.used == 2  # wrong bytes are fetched once more
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
    assert str(caught.value).startswith("org/bad: state_dict.bin: ")
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
            cancellation=Cancellation(),
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
