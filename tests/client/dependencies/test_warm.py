"""A warm brings what the model needs, under the names and in the places where it is looked for."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import hf_hub_download

from craftcache import Client, NotFound, PolicyDenied
from tests.daemon.store.test_tree import tree
from tests.support.api import Api
from tests.support.checkpoints import saved
from tests.support.daemons import DaemonProcess
from tests.support.dependencies import (
    CODEC,
    CODEC_FILES,
    DIFFUSION,
    OTHER_CODEC,
    PAIR,
    REFERRING,
    T5_FILES,
    WORDS,
    export,
    host_codec,
    host_t5,
    listed,
    lm,
    seen_before,
)
from tests.support.hub import Gate, Stall, matching

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import TestHub


def filenames(model: dict[str, object]) -> set[str]:
    files = model["files"]
    assert isinstance(files, list)
    return {file["filename"] for file in files}


def test_what_a_model_names_comes_with_it(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("org/model").commit(REFERRING)
    host_t5(threaded_hub)
    host_codec(threaded_hub)
    assert api.warm("org/model").status_code == 200
    models = listed(api)
    assert filenames(models["t5-base"]) == set(T5_FILES)
    assert filenames(models["facebook/encodec_32khz"]) == set(CODEC_FILES)
    assert {need["source"]: need["is_cached"] for need in models["org/model"]["needs"]} == {
        "t5-base": True,
        "facebook/encodec_32khz": True,
    }
    assert [models[name]["needed_only"] for name in sorted(models)] == [True, False, True]
    assert "pytorch_model.bin" not in {r.path.rpartition("/")[2] for r in threaded_hub.requests}
    assert "org/model needs t5-base at " in daemon.log


def test_a_renamed_repository_stands_under_the_name_it_was_asked_by(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, tmp_path: Path
) -> None:
    threaded_hub.repo("org/model").commit(PAIR)
    host_t5(threaded_hub)
    api.warm("org/model")
    for name in T5_FILES:
        hf_hub_download("t5-base", name, cache_dir=tmp_path, endpoint=threaded_hub.endpoint)
    ours, theirs = tree(daemon.cache_dir), tree(tmp_path)
    assert {path: ours.get(path) for path in theirs} == theirs
    assert {path for path in ours if "t5" in path} == {path for path in theirs if "t5" in path}
    for name, content in T5_FILES.items():
        path = hf_hub_download("t5-base", name, cache_dir=daemon.cache_dir, local_files_only=True)
        with open(path, "rb") as file:
            assert file.read() == content


def test_a_token_follows_the_new_name_on_the_hub_and_goes_nowhere_else(
    seen: Path, threaded_hub: TestHub
) -> None:
    token = "hf_s3cretTokenOfTheDaemon"
    threaded_hub.repo("org/model").commit(PAIR)
    host_t5(threaded_hub, private=True)
    threaded_hub.grant(token, "google-t5/t5-base")
    environment = {"HF_ENDPOINT": threaded_hub.endpoint, "HF_TOKEN": token}
    with DaemonProcess(seen, **environment) as daemon, Api(daemon.socket_dir) as api:
        assert api.warm("org/model").status_code == 200
        assert filenames(listed(api)["t5-base"]) == set(T5_FILES)
    asked = threaded_hub.matching("*t5-base/*", origin="hub")
    assert {request.authorization for request in asked} == {f"Bearer {token}"}
    assert threaded_hub.tokens_at_cdn == []
    assert token not in daemon.log


def test_a_load_and_a_warm_of_the_pair_alone_bring_no_more(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("org/model").commit(PAIR)
    threaded_hub.repo("org/other").commit(PAIR)
    host_t5(threaded_hub)
    with daemon.client() as client:
        client.load("org/model")
        client.warm("org/other", pair_only=True)
        (model, other) = client.models()
    for each in (model, other):
        assert [(need.source, need.is_cached) for need in each.needs] == [("t5-base", False)]
    body = {"sources": ["org/model"], "pair_only": True}
    assert api.request("POST", "/warm", json=body).status_code == 200
    assert api.request("POST", "/warm", json=body | {"pair_only": 1}).status_code == 400
    assert set(listed(api)) == {"org/model", "org/other"}
    assert threaded_hub.count(None, "*t5-base*") == 0


def test_the_failure_of_a_need_names_it_and_leaves_the_rest(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("org/model").commit(REFERRING)
    host_codec(threaded_hub)
    with daemon.client() as client:
        with pytest.raises(NotFound) as failed:
            client.warm("org/model")
        assert failed.value.source == "org/model"
        assert failed.value.message.startswith(
            "t5-base is missing, the text encoder that state_dict.bin names: no such repository"
        )
        assert "--pair-only" in (failed.value.hint or "")
        assert client.load("org/model").served_by == "daemon"
    assert set(listed(api)) == {"org/model", "facebook/encodec_32khz"}
    host_t5(threaded_hub)
    assert api.warm("org/model").status_code == 200
    assert "t5-base" in listed(api)


def test_what_the_node_may_not_fetch_is_not_fetched_as_a_need_either(
    seen: Path, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("org/model").commit(PAIR)
    host_t5(threaded_hub)
    with (
        DaemonProcess(seen, "--allow", "org/*", HF_ENDPOINT=threaded_hub.endpoint) as daemon,
        daemon.client() as client,
        pytest.raises(PolicyDenied, match=r"t5-base is missing, .*does not fetch it"),
    ):
        client.warm("org/model")
    assert threaded_hub.count(None, "*t5-base*") == 0


def test_what_cannot_be_warmed_is_named_with_what_to_do(
    daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("org/model").commit(WORDS)
    with daemon.client() as client:
        client.warm("org/model")
        [model] = client.models()
    [unmet] = model.unmet
    assert unmet.what == "spaCy's en_core_web_sm"
    assert "python -m spacy download" in unmet.hint


def test_a_new_revision_of_a_need_comes_with_the_next_warm(api: Api, threaded_hub: TestHub) -> None:
    threaded_hub.repo("org/model").commit(PAIR)
    repo = host_t5(threaded_hub)
    api.warm("org/model")
    new = repo.commit({"tokenizer_config.json": b'{"new": true}'})
    api.warm("org/model")
    model = listed(api)["t5-base"]
    assert model["revision"] == new
    assert filenames(model) == {*T5_FILES, "tokenizer_config.json"}
    assert threaded_hub.count("GET", "*/model.safetensors", origin="cdn") == 1


def test_a_file_named_alone_has_what_the_code_of_audiocraft_names(
    api: Api, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("facebook/multiband-diffusion").commit(DIFFUSION)
    threaded_hub.repo("facebook/musicgen-small").commit(PAIR)
    (name,) = DIFFUSION
    assert api.warm("facebook/multiband-diffusion", files=(name,)).status_code == 200
    models = listed(api)
    assert filenames(models["facebook/musicgen-small"]) == {"compression_state_dict.bin"}
    assert threaded_hub.count(None, "*/state_dict.bin") == 0
    assert "t5-base" not in models


def test_what_is_wanted_by_name_and_as_a_need_at_once_comes_once_and_is_inspected(
    base: Path, threaded_hub: TestHub
) -> None:
    seen_before(base / "cache")
    threaded_hub.repo("facebook/multiband-diffusion").commit(DIFFUSION)
    threaded_hub.repo("facebook/musicgen-small").commit(
        {"state_dict.bin": CODEC, "compression_state_dict.bin": OTHER_CODEC}
    )
    gate = Gate()
    codec = "*/compression_state_dict.bin"
    threaded_hub.inject(Stall(gate), path=codec, method="GET", origin="cdn")
    with (
        DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as daemon,
        daemon.client() as client,
        ThreadPoolExecutor() as threads,
    ):
        diffusion = threads.submit(
            client.warm, "facebook/multiband-diffusion", filenames=tuple(DIFFUSION)
        )
        threaded_hub.wait_for_request_blocking(matching(codec, method="GET", origin="cdn"))
        pair = threads.submit(client.warm, "facebook/musicgen-small")
        lm_comes = matching("*/state_dict.bin", method="GET", origin="cdn")
        threaded_hub.wait_for_request_blocking(lm_comes)
        gate.open()
        diffusion.result()
        pair.result()
        assert client.load("facebook/musicgen-small").served_by == "daemon"
        models = {model.source: model for model in client.models()}
        assert not models["facebook/musicgen-small"].is_needed_only
    assert threaded_hub.count("GET", codec, origin="cdn") == 1


def test_what_came_as_a_need_says_what_it_needs_once_it_is_loaded(
    base: Path, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("facebook/musicgen-small").commit(REFERRING)
    threaded_hub.repo("facebook/multiband-diffusion").commit(DIFFUSION)
    with (
        DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as daemon,
        Api(daemon.socket_dir) as api,
        daemon.client() as client,
    ):
        client.warm("facebook/multiband-diffusion", filenames=tuple(DIFFUSION))
        assert listed(api)["facebook/musicgen-small"]["needs"] == []
        client.load_state_dict("facebook/musicgen-small", "compression_state_dict.bin")
        needs = listed(api)["facebook/musicgen-small"]["needs"]
    assert [need["source"] for need in needs] == ["facebook/encodec_32khz"]


def test_other_files_of_a_source_are_needed_as_well(base: Path, threaded_hub: TestHub) -> None:
    reference = saved({"pretrained": "facebook/musicgen-small"})
    style = {"model_name": "encodec", "encodec_checkpoint": "//pretrained/org/codec"}
    threaded_hub.repo("org/model").commit(
        export(lm(self_wav={"model": "style", "style": style}), reference)
    )
    threaded_hub.repo("org/codec").commit(CODEC_FILES | DIFFUSION)
    threaded_hub.repo("facebook/musicgen-small").commit(CODEC_FILES | PAIR)
    with (
        DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as daemon,
        Api(daemon.socket_dir) as api,
        daemon.client() as client,
    ):
        client.warm("org/codec", filenames=tuple(DIFFUSION), pair_only=True)
        client.warm("org/model")
        assert filenames(listed(api)["facebook/musicgen-small"]) == {
            *CODEC_FILES,
            "compression_state_dict.bin",
        }


def test_a_watched_export_brings_what_it_needs(base: Path, threaded_hub: TestHub) -> None:
    seen_before(base / "cache")
    host_t5(threaded_hub)
    written = base / "export"
    written.mkdir()
    gate = Gate()
    threaded_hub.inject(Stall(gate), path="*t5-base*", method=None)
    with (
        DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as daemon,
        Api(daemon.socket_dir) as api,
        daemon.client() as client,
    ):
        rule = {"directory": str(written), "settle": 0.1}
        assert api.request("PUT", "/watches/run", json=rule).status_code == 200
        for name, content in PAIR.items():
            (written / name).write_bytes(content)
        threaded_hub.wait_for_request_blocking(matching("*t5-base*"))
        [job] = api.get("/warm")["jobs"]
        assert job["source"] == "watch:run@1"
        assert client.load("watch:run").served_by == "daemon"
        daemon.kill()
        gate.open()
        daemon.start()
        client.warm("watch:run")
        assert {"t5-base", "watch:run", "watch:run@1"} <= set(listed(api))


def test_a_queued_warm_brings_it_too_also_after_a_restart(
    seen: Path, threaded_hub: TestHub
) -> None:
    for name in ("org/model", "org/alone"):
        threaded_hub.repo(name).commit(PAIR)
    host_t5(threaded_hub)
    gate = Gate()
    threaded_hub.inject(Stall(gate), path="/org/*", method="HEAD", times=None)
    with (
        DaemonProcess(seen, HF_ENDPOINT=threaded_hub.endpoint) as daemon,
        contextlib.closing(daemon.client()) as client,
    ):
        with Api(daemon.socket_dir) as api:
            api.warm("org/model", wait=False)
            body = {"sources": ["org/alone"], "pair_only": True, "wait": False}
            api.request("POST", "/warm", json=body)
            queued = {job["source"]: job["pair_only"] for job in api.get("/warm")["jobs"]}
            assert queued == {"org/model": False, "org/alone": True}
        daemon.kill()
        before = len(threaded_hub.requests)
        daemon.start()
        gate.open()
        threaded_hub.wait_for_request_blocking(
            lambda r: r.number >= before and r.done and r.path.endswith("/tokenizer.json")
        )
        client.warm(["org/model", "org/alone"])  # joins what is queued
        t5_base = next(model for model in client.models() if model.source == "t5-base")
        assert {file.filename for file in t5_base.files} == set(T5_FILES)


def test_without_the_daemon_the_cache_still_says_what_is_there(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("org/model").commit(PAIR)
    host_t5(threaded_hub)
    api.warm("org/model")
    with daemon.client() as client:
        with_daemon = client.models()
        daemon.kill()
        without = client.models()
    assert [(m.source, m.needs, m.is_needed_only) for m in without] == [
        (m.source, m.needs, m.is_needed_only) for m in with_daemon
    ]


def test_a_worker_alone_says_that_it_brings_no_more_than_the_files_themselves(
    base: Path,
    threaded_hub: TestHub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)
    threaded_hub.repo("org/model").commit(PAIR)
    with Client(socket_dir=base / "run", cache_dir=base / "cache") as client:
        client.warm("org/model", pair_only=True)
        assert "nothing that it needs" not in caplog.text
        client.warm("org/model")
        assert caplog.text.count("nothing that it needs") == 1
