"""Hashing again what is published: what is found, and what becomes of a wrong file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from tests.support.checkpoints import assert_same
from tests.support.daemons import EXPORT, EXPORT_FILES
from tests.support.hub import Gate, OnDisk, Stall, Status

if TYPE_CHECKING:
    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

LM, CODEC = "state_dict.bin", "compression_state_dict.bin"


@pytest.fixture
def lm(api: Api, daemon: DaemonProcess, export_repo: Repo) -> Path:
    """Where the language model of org/model is published."""
    assert api.warm("org/model").is_success
    with daemon.client() as client:
        return client.resolve("org/model", LM).resolve()


def spoil(path: Path) -> bytes:
    """Flip a bit and leave no trace of it but in the content; returns that."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return bytes(content)


def verify(api: Api, *sources: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The results by source and file."""
    response = api.request("POST", "/verify", json={"sources": list(sources)})
    assert response.status_code == 200, response.text
    return {(each["source"], each["filename"]): each for each in response.json()["results"]}


def test_what_is_right_stays(api: Api, lm: Path) -> None:
    before = lm.stat().st_ino
    results = verify(api)
    assert {key: each["outcome"] for key, each in results.items()} == {
        ("org/model", CODEC): "right",
        ("org/model", LM): "right",
    }
    assert verify(api, "org/model") == results
    assert lm.stat().st_ino == before


def test_a_wrong_file_goes_to_quarantine_and_is_fetched_anew(
    api: Api, daemon: DaemonProcess, lm: Path, threaded_hub: TestHub
) -> None:
    wrong = spoil(lm)
    results = verify(api)
    assert results["org/model", CODEC]["outcome"] == "right"
    found = results["org/model", LM]
    assert (found["outcome"], found["failure"]) == ("mended", None)
    assert (daemon.cache_dir / found["quarantined"]).read_bytes() == wrong
    assert Path(found["quarantined"]).is_relative_to(".craftcache/quarantine")
    assert threaded_hub.bytes_sent(f"*/{LM}", origin="cdn") == 2 * EXPORT_FILES[LM].stat().st_size
    own = hf_hub_download("org/model", LM, cache_dir=daemon.cache_dir, local_files_only=True)
    assert Path(own).read_bytes() == EXPORT_FILES[LM].read_bytes()
    with daemon.client() as client:
        export = client.load("org/model")
        assert_same(export.lm, torch.load(EXPORT / LM, weights_only=True))
        assert export.served_by == "daemon"
    assert verify(api)["org/model", LM]["outcome"] == "right"


def test_a_wrong_file_is_not_served_though_its_origin_is_away(
    api: Api, daemon: DaemonProcess, lm: Path, threaded_hub: TestHub
) -> None:
    away = threaded_hub.inject(Status(503), path="*", origin="hub", method=None, times=None)
    spoil(lm)
    found = verify(api)["org/model", LM]
    # A look of the daemon's own may have come first, and have set it aside.
    assert found["outcome"] in ("wrong", "missing")
    assert found["failure"]["code"] == "Unavailable"
    assert found["failure"]["retryable"]
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("org/model", LM, cache_dir=daemon.cache_dir, local_files_only=True)
    assert verify(api)["org/model", LM]["outcome"] == "missing"
    away.left = 0
    # It is fetched again by itself, too, which may come first.
    assert verify(api)["org/model", LM]["outcome"] in ("mended", "right")
    assert lm.read_bytes() == (EXPORT / LM).read_bytes()


def test_what_no_longer_is_a_file_is_wrong_too(api: Api, daemon: DaemonProcess, lm: Path) -> None:
    lm.unlink()
    lm.mkdir()
    found = verify(api, "org/model")["org/model", LM]
    assert found["outcome"] == "mended"
    assert (daemon.cache_dir / found["quarantined"]).is_dir()
    assert lm.is_file()


def test_a_wrong_file_that_is_a_link_takes_what_it_leads_to_along(
    api: Api, daemon: DaemonProcess, lm: Path
) -> None:
    shared = daemon.cache_dir / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    lm.rename(shared)
    lm.symlink_to(os.path.relpath(shared, lm.parent))
    assert verify(api)["org/model", LM]["outcome"] == "right"
    spoil(shared)
    assert verify(api)["org/model", LM]["outcome"] == "mended"
    assert not shared.exists()
    assert not lm.is_symlink()


def test_a_file_that_two_models_share_is_wrong_for_both(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    for name, path in EXPORT_FILES.items():
        threaded_hub.files[f"/a/{name}"] = threaded_hub.files[f"/b/{name}"] = OnDisk(path)
    urls = [threaded_hub.cdn_url("/a/"), threaded_hub.cdn_url("/b/")]
    assert api.warm(*urls).is_success
    with daemon.client() as client:
        spoil(client.resolve(urls[0], CODEC))
    results = verify(api)
    assert {results[url, CODEC]["outcome"] for url in urls} == {"mended"}
    assert {results[url, LM]["outcome"] for url in urls} == {"right"}
    assert len({results[url, CODEC]["quarantined"] for url in urls}) == 1


def test_a_model_that_is_not_cached_is_named_before_anything_is_done(api: Api, lm: Path) -> None:
    spoil(lm)
    response = api.request("POST", "/verify", json={"sources": ["org/model", "org/none"]})
    assert (response.status_code, response.json()["source"]) == (404, "org/none")
    assert lm.is_file()
    assert api.request("POST", "/verify", json={"sources": "org/model"}).status_code == 400


def test_it_runs_on_when_its_caller_goes_and_is_joined_by_who_asks_again(
    api: Api, daemon: DaemonProcess, lm: Path, threaded_hub: TestHub
) -> None:
    spoil(lm)
    gate = Gate()
    threaded_hub.inject(Stall(gate, after=1000), path=f"*/{LM}", origin="cdn")
    body = {"sources": ["org/model"]}
    with api.streaming("POST", "/verify", body) as events:
        first = next(events)
        gate.reached.wait_blocking()
    (running,) = api.get("/verify")["verifications"]
    assert (running["id"], running["ended_at"]) == (first["id"], None)
    joined = api.request("POST", "/verify", json=body | {"wait": False})
    assert (joined.status_code, joined.json()["id"]) == (202, first["id"])
    gate.open()
    ended = verify(api, "org/model")
    assert ended["org/model", LM]["outcome"] == "mended"
    shown = api.get(f"/verify/{first['id']}")
    assert shown["found"] == {"right": 1, "mended": 1}
    assert (shown["files_done"], shown["failure"]) == (2, None)
    assert len(api.get("/verify")["verifications"]) == 1
    assert api.request("GET", "/verify/99").status_code == 404
