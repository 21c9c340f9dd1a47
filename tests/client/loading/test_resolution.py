"""Which files a name stands for, on which device they land, and AudioCraft's order beside it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import hf_hub_download

from craftcache import Client
from craftcache.client import default_client
from craftcache.errors import (
    IntegrityError,
    InvalidSource,
    NotACheckpoint,
    NotFound,
    NotMounted,
    UnknownDevice,
    UnsafeCheckpoint,
)
from tests.support.checkpoints import assert_same, saved
from tests.support.daemons import EXPORT
from tests.support.hub import Data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.clients import Node
    from tests.support.hub import TestHub

LM, CODEC = EXPORT / "state_dict.bin", EXPORT / "compression_state_dict.bin"


def expected(path: Path = LM) -> Any:
    return torch.load(path, weights_only=True)


@pytest.fixture
def local() -> Client:
    """A client that has no daemon and no use for one."""
    return Client(socket_dir="/nowhere", fallback="none")


@pytest.fixture
def client(node: Node) -> Iterator[Client]:
    with node.daemon.client() as client:
        yield client


# --- Local files ---


@pytest.mark.parametrize("named", [EXPORT, str(EXPORT), LM, str(CODEC)], ids=str)
def test_a_directory_or_a_file_of_a_pair_is_the_pair(local: Client, named: Any) -> None:
    export = local.load(named)
    assert export.served_by == "local"
    assert export.fallback_reason is None
    assert export.revision == ""
    assert export.files["lm"].sha256 is None
    assert_same(export.lm, expected())
    assert_same(export.compression, expected(CODEC))


def test_a_part_of_it_is_that_part_alone(local: Client, tmp_path: Path) -> None:
    (tmp_path / "state_dict.bin").symlink_to(LM)
    (tmp_path / "other.th").symlink_to(LM)
    for named in (tmp_path, tmp_path / "state_dict.bin", tmp_path / "other.th"):
        export = local.load(named, parts=("lm",))
        assert export.compression is None
        assert set(export.files) == {"lm"}
        assert_same(export.lm, expected())
    with pytest.raises(NotFound, match=r"compression_state_dict\.bin"):
        local.load(tmp_path)
    with pytest.raises(InvalidSource, match="one checkpoint"):
        local.load(tmp_path / "other.th")


@pytest.mark.parametrize("parts", [(), ("lm", "vocoder"), "lm"])
def test_unknown_parts_are_named(local: Client, parts: Any) -> None:
    with pytest.raises(InvalidSource, match="parts"):
        local.load(EXPORT, parts=parts)


class Gadget:
    """Its pickle runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_a_local_file_is_loaded_as_safely_as_any(local: Client, tmp_path: Path) -> None:
    path = tmp_path / "x.th"
    path.write_bytes(saved(Gadget()))
    with pytest.raises(UnsafeCheckpoint) as caught:
        local.load_state_dict(path)
    assert caught.value.source == str(path)
    path.write_bytes(b"")
    with pytest.raises(NotACheckpoint):
        local.load_state_dict(path)


def test_a_local_file_may_be_overwritten_under_what_was_loaded(
    local: Client, tmp_path: Path
) -> None:
    path = tmp_path / "x.th"
    state = {"w": torch.rand(100_000)}
    path.write_bytes(saved(state))
    loaded = local.load_state_dict(path)
    path.write_bytes(b"")
    assert_same(loaded, state)


def test_a_name_that_is_a_directory_is_no_checkpoint(local: Client, tmp_path: Path) -> None:
    (tmp_path / "state_dict.bin").mkdir()
    with pytest.raises(NotFound):
        local.load(tmp_path, parts=("lm",))


def test_a_link_that_leads_nowhere_is_no_file(local: Client, tmp_path: Path) -> None:
    for target in ("state_dict.bin", "missing", "x" * 300):
        (tmp_path / "state_dict.bin").symlink_to(target)
        with pytest.raises(NotFound):
            local.load(tmp_path, parts=("lm",))
        (tmp_path / "state_dict.bin").unlink()


# --- AudioCraft's order ---


def test_load_state_dict_follows_audiocrafts_order(
    client: Client, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    node.hub.repo("org/order").commit({"x.th": saved(["hub"])})
    assert client.load_state_dict("org/order", "x.th") == ["hub"]
    assert client.load_state_dict(Path("org/order"), filename="x.th") == ["hub"]
    Path("org/order").mkdir(parents=True)
    Path("org/order/x.th").write_bytes(saved(["directory"]))
    assert client.load_state_dict("org/order", "x.th") == ["directory"]
    assert client.load_state_dict(Path("org/order"), "x.th") == ["directory"]
    Path("org/file").write_bytes(saved(["file"]))
    assert client.load_state_dict("org/file") == ["file"]
    assert client.load_state_dict("org/file", "ignored.th") == ["file"]


def test_a_directory_that_wins_over_a_hub_id_is_logged(
    local: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("facebook").mkdir()
    Path("facebook/musicgen-small").symlink_to(EXPORT)
    with caplog.at_level(logging.INFO, "craftcache"):
        assert local.load("facebook/musicgen-small").served_by == "local"
    assert "facebook/musicgen-small" in caplog.text


@pytest.mark.parametrize("source", ["org/model", str(EXPORT), "https://host/run/"])
def test_which_file_of_several_must_be_said(local: Client, source: str) -> None:
    with pytest.raises(InvalidSource, match="which file"):
        local.load_state_dict(source)
    for bad in ("../x", "/etc/passwd", "a//b", ""):
        with pytest.raises(InvalidSource):
            local.load_state_dict(source, bad)


def test_load_state_dict_looks_into_the_cache_that_it_is_given(
    alone: Client, base: Path, threaded_hub: TestHub
) -> None:
    alone.load_state_dict("org/model", "state_dict.bin", cache_dir=base / "given")
    assert (base / "given" / "models--org--model").is_dir()
    assert not (base / "cache").exists()
    before = len(threaded_hub.requests)
    alone.load_state_dict("org/model", "state_dict.bin", cache_dir=str(base / "given"))
    assert len(threaded_hub.requests) == before


def test_the_module_has_a_client_of_its_own(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    import craftcache

    monkeypatch.setenv("CRAFTCACHE_SOCKET_DIR", str(node.daemon.socket_dir))
    monkeypatch.setenv("CRAFTCACHE_CACHE_DIR", str(node.daemon.cache_dir))
    vars(default_client).clear()
    try:
        assert craftcache.load("org/model").served_by == "daemon"
        assert_same(craftcache.load_state_dict("org/model", "state_dict.bin"), expected())
        assert craftcache.resolve("org/model", "state_dict.bin").is_file()
        assert craftcache.warm("org/model")[0].served_by == "daemon"
        assert craftcache.status().pid == node.daemon.pid
        assert craftcache.models()
    finally:
        vars(default_client).clear()


def test_a_digest_in_a_url_is_checked_by_the_daemon_whatever_is_warm(
    client: Client, node: Node
) -> None:
    content = Data(saved(["checked"]))
    node.hub.files["/checked.th"] = content
    url = node.hub.cdn_url("/checked.th")
    for named in (url, f"{url}#sha256={content.sha256}"):
        assert client.load_state_dict(named) == ["checked"]
    for wrong in (f"{url}#sha256={'0' * 64}", f"{url}#sha256={content.sha256[::-1]}"):
        with pytest.raises(IntegrityError):
            client.load_state_dict(wrong)
        with pytest.raises(IntegrityError):
            client.warm(wrong)
    assert client.load_state_dict(url) == ["checked"]
    assert client.load(url, parts=("lm",)).served_by == "daemon"


# --- Paths ---


def test_resolve_gives_what_hf_hub_download_gives(client: Client, node: Node) -> None:
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        theirs = hf_hub_download(
            "org/model", name, cache_dir=node.daemon.cache_dir, local_files_only=True
        )
        assert str(client.resolve("org/model", name)) == theirs
    assert client.resolve(EXPORT, "state_dict.bin") == LM
    assert client.resolve(LM, "ignored") == LM
    with pytest.raises(NotFound):
        client.resolve(EXPORT, "missing.bin")
    with pytest.raises(InvalidSource):
        client.resolve("org/model", "../x")


def test_a_client_with_another_cache_is_told_that_it_sees_no_file(node: Node, base: Path) -> None:
    with Client(socket_dir=node.daemon.socket_dir, cache_dir=base) as client:
        assert client.load("org/model").served_by == "daemon"
        with pytest.raises(NotMounted) as caught:
            client.resolve("org/model", "state_dict.bin")
        assert "CRAFTCACHE_CACHE_DIR" in str(caught.value)
        resolved = Path("models--org--model/snapshots")
        right = next((node.daemon.cache_dir / resolved).iterdir()).name
        lookalike = base / resolved / right / "state_dict.bin"
        lookalike.parent.mkdir(parents=True)
        lookalike.write_bytes(LM.read_bytes())
        with pytest.raises(NotMounted):
            client.resolve("org/model", "state_dict.bin")


# --- Devices ---


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"])
def test_the_cpu_by_any_name(client: Client, device: Any) -> None:
    assert_same(client.load("org/model", device=device).lm, expected())


def test_meta_tensors_have_shapes_and_no_values(client: Client) -> None:
    lm = client.load("org/model", device="meta").lm
    for name, tensor in expected()["best_state"].items():
        loaded = lm["best_state"][name]
        assert loaded.device.type == "meta"
        assert (loaded.shape, loaded.dtype) == (tensor.shape, tensor.dtype)


NO_CUDA = not torch.cuda.is_available()


@pytest.mark.parametrize(
    "device",
    [
        "nonsense",
        "",
        "cuda:-1",
        "cuda:99",
        "cpu:x",
        "xpu",
        "mps",
        "hpu",
        "mtia",
        "vulkan",
        99,
        -1,
        2**70,
        None,
        1.5,
        *(["cuda", "cuda:0", 0, torch.device("cuda", 0)] if NO_CUDA else []),
    ],
    ids=repr,
)
def test_an_unknown_device_is_an_error_before_any_byte_is_fetched(
    alone: Client, threaded_hub: TestHub, device: Any
) -> None:
    for call in (alone.load, lambda s, device: alone.load_state_dict(s, "x.th", device)):
        with pytest.raises(UnknownDevice) as caught:
            call("org/model", device=device)
        assert caught.value.hint
    assert not threaded_hub.requests
    assert not alone.cache_dir.exists()
