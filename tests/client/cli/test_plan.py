"""``craftcache plan``: what a warm would take, without a byte of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from craftcache.cli.plan import free_memory
from craftcache.errors import UnknownDevice
from tests.support.checkpoints import saved
from tests.support.command import SIZE, Node
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.dependencies import PAIR, T5_FILES, host_t5, seen_before
from tests.support.hub import Data, hub_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

HALF = {"weight": torch.zeros(1000, dtype=torch.float16), "bias": torch.zeros(10)}
LIMIT = 3_000_000


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """Its cache may have 3 MB and has ``org/model``; ``org/other`` and others are at the Hub."""
    with tempfile.TemporaryDirectory(prefix="cc-") as base, hub_in_thread() as hub:
        seen_before(Path(base) / "cache")
        hub.repo("org/model").commit(EXPORT_FILES)
        arguments = ("--insecure-host", "127.0.0.1", "--max-bytes", str(LIMIT))
        with DaemonProcess(Path(base), *arguments, HF_ENDPOINT=hub.endpoint) as daemon:
            node = Node(hub, daemon)
            unknown = node.run("plan", "org/model", "--json")
            assert unknown.json["bytes_per_second"] is None
            assert unknown.json["seconds"] is None
            assert node.run("warm", "org/model").code == 0
            yield node


def test_of_what_is_here_nothing_is_to_be_fetched_and_the_tensors_are_known(node: Node) -> None:
    ran = node.run("plan", "org/model", "--json")
    assert ran.code == 0, ran.err
    [model] = ran.json["models"]
    assert (model["fetch_bytes"], model["are_needs_known"]) == (0, True)
    assert all(file["is_here"] for file in model["files"])
    real = 0
    for path in EXPORT_FILES.values():
        loaded = torch.load(path, weights_only=True)
        real += sum(t.nbytes for t in loaded["best_state"].values() if isinstance(t, torch.Tensor))
    assert sum(ran.json["tensor_bytes"].values()) == real
    assert (ran.json["is_estimate"], ran.json["seconds"]) == (False, 0.0)
    said = node.run("plan", "org/model").out
    assert "to fetch: 0 bytes, nothing to wait for\n" in said
    assert "it fits\n" in said
    assert "estimate" not in said


def test_of_what_is_not_here_bytes_time_and_an_estimate_are_said(node: Node) -> None:
    content = saved({"best_state": HALF, "xp.cfg": "other: 1"})
    node.hub.repo("org/other").commit({**EXPORT_FILES, "state_dict.bin": content})
    got = node.hub.count("GET", "/lfs/org/other/*")
    ran = node.run("plan", "org/other", "--json")
    assert ran.code == 0, ran.err
    [model] = ran.json["models"]
    files = {file["filename"]: file for file in model["files"]}
    assert files["compression_state_dict.bin"]["is_here"]  # org/model has the same bytes
    assert files["state_dict.bin"]["tensor_bytes"] == {"unknown": len(content)}
    assert ran.json["fetch_bytes"] == len(content)
    assert (ran.json["is_estimate"], model["are_needs_known"]) == (True, False)
    rate, seconds = ran.json["bytes_per_second"], ran.json["seconds"]
    assert seconds == pytest.approx(len(content) / rate)
    said = node.run("plan", "org/other").out
    assert "unknown is an estimate by the size of the file" in said
    assert "as measured lately" in said
    assert "is not in this plan" in said
    assert node.hub.count("GET", "/lfs/org/other/*") == got


def test_what_would_have_to_go_is_named_and_what_can_never_fit_is_refused(node: Node) -> None:
    node.hub.repo("org/second").commit({"state_dict.bin": b"2" * 2_000_000})
    ran = node.run("plan", "org/second", "--file", "state_dict.bin", "--json")
    assert ran.code == 0, ran.err
    room = ran.json["room"]
    assert (room["evicted"], room["missing_bytes"]) == (["org/model"], 0)
    assert (room["max_bytes"], room["freed_bytes"]) == (LIMIT, SIZE)
    assert room["used_bytes"] >= SIZE
    node.hub.repo("org/huge").commit({"state_dict.bin": b"3" * (LIMIT + 5)})
    huge = node.run("plan", "org/huge", "--file", "state_dict.bin")
    assert huge.code == 1
    assert " are missing\n" in huge.out
    assert node.run("warm", "--check", "org/model").code == 0  # nothing went


def test_the_tensors_fit_a_device_or_do_not(node: Node) -> None:
    fits = node.run("plan", "org/model", "--device-memory", "16GB")
    assert fits.code == 0
    assert "which is enough for the tensors" in fits.out
    small = node.run("plan", "org/model", "--device-memory", "1MB", "--json")
    assert (small.code, small.json["fits_device"], small.json["device_bytes"]) == (1, False, 10**6)
    assert node.run("plan", "org/model", "--device-memory", "much").code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda:0", "cpu", "no such"])
def test_what_is_no_device_here_is_said(device: str) -> None:
    with pytest.raises(UnknownDevice, match=device):
        free_memory(device)


def test_what_a_model_needs_is_planned_with_it(node: Node) -> None:
    t5 = host_t5(node.hub)
    node.hub.repo("org/needing").commit(PAIR)
    assert node.run("warm", "org/needing", "--pair-only").code == 0
    ran = node.run("plan", "org/needing", "--json")
    models = {model["source"]: model for model in ran.json["models"]}
    assert set(models) == {"org/needing", "t5-base"}
    assert models["t5-base"]["revision"] == t5.resolve("main")
    assert models["t5-base"]["why"] == "the text encoder that state_dict.bin names"
    assert models["t5-base"]["fetch_bytes"] == sum(map(len, T5_FILES.values()))
    assert models["t5-base"]["are_needs_known"]
    alone = node.run("plan", "org/needing", "--pair-only", "--json").json["models"]
    assert [model["source"] for model in alone] == ["org/needing"]


def test_a_selection_and_a_url_are_planned(node: Node) -> None:
    node.hub.repo("org/whole").commit({"a.json": b"{}", "b.json": b"[1]", "c.txt": b"c"})
    ran = node.run("plan", "org/whole", "--include", "*.json", "--json").json
    assert ran["fetch_bytes"] == 5
    assert ran["tensor_bytes"] == {}
    node.hub.files["/plain/w.th"] = Data(b"w" * 1234)
    url = node.hub.cdn_url("/plain/w.th")
    [model] = node.run("plan", url, "--json").json["models"]
    assert [file["size"] for file in model["files"]] == [1234]
    assert node.run("plan", "org/absent", "--json").problem["code"] == "NotFound"
