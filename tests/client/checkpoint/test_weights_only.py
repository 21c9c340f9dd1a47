"""The one way to unpickle: torch's weights-only rules, an explicit allow-list, typed errors."""

from __future__ import annotations

import io
import os
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch.serialization import get_safe_globals, safe_globals

from craftcache.checkpoint import weights_only
from craftcache.errors import NotACheckpoint, UnsafeCheckpoint
from tests.support.checkpoints import memory_file, saved

if TYPE_CHECKING:
    from pathlib import Path


class Gadget:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def config() -> DictConfig:
    return OmegaConf.create(
        {"dim": 1024, "lr": 1e-4, "layers": [1, {"name": "x"}, None], "same": "${dim}", "no": "???"}
    )


def allowed() -> set[object]:
    """What the process allows now; torch itself adds to it as it is imported bit by bit."""
    names = weights_only.ALLOWED_GLOBALS
    return {item for item in get_safe_globals() if isinstance(item, tuple) and item[1] in names}


def load(content: bytes, **options: Any) -> Any:
    with memory_file(content) as fd:
        return weights_only.load(fd, map_location="cpu", **options)


def test_omegaconf_objects_are_allowed_and_only_while_they_load() -> None:
    ours = load(saved({"xp.cfg": config(), "weight": torch.ones(2)}))
    assert type(ours["xp.cfg"]) is DictConfig
    assert ours["xp.cfg"] == config()
    assert ours["xp.cfg"].same == 1024
    assert ours["weight"].eq(1).all()
    assert not allowed()


def test_what_the_process_itself_allowed_stays_allowed() -> None:
    mine = (DictConfig, "omegaconf.dictconfig.DictConfig")
    with safe_globals([mine]):
        load(saved(config()))
        assert allowed() == {mine}


@pytest.mark.filterwarnings("ignore:register_new_resolver")  # 2.4 renamed it, 2.3 has no other
def test_filled_defaultdicts_are_restored() -> None:
    OmegaConf.clear_resolvers()
    OmegaConf.register_new_resolver("twice", lambda value: 2 * int(value), use_cache=True)
    cfg = OmegaConf.create({"a": {"b": "${twice:4}"}})
    assert cfg.a.b == 8
    plain = defaultdict(list, {"x": [1]})
    ours = load(saved({"cfg": [cfg], "plain": plain}))
    cache = OmegaConf.get_cache(ours["cfg"][0])
    assert type(cache) is defaultdict
    assert cache == OmegaConf.get_cache(cfg)
    assert cache["another"] == {}
    assert ours["plain"] == plain
    assert ours["plain"]["new"] == []
    assert ours["cfg"][0].a.b == 8


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("allowed_too", [False, True])
def test_gadgets_are_refused_by_name(tmp_path: Path, legacy: bool, allowed_too: bool) -> None:
    checkpoint: dict[str, object] = {"cfg": config()} if allowed_too else {}
    checkpoint["weight"] = Gadget(tmp_path / "ran")
    content = saved(checkpoint, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeCheckpoint, match=r"org/name: .*posix\.mkdir"):
        load(content, source="org/name")
    assert not (tmp_path / "ran").exists()
    assert not allowed()


def test_the_environment_cannot_turn_the_rules_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UnsafeCheckpoint):
        load(saved(Gadget(tmp_path / "ran")))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04", "it is a truncated zip archive: its 4 bytes"),
        (b"<html></html>", "it is an HTML page"),
        (bytes(1000), "it is 1000 bytes of which the first 1000 are zero"),
        (saved([torch.ones(9)])[:-40], "it is a truncated zip archive"),
        (b"\x80\x02.", r"it is a pickle that torch\.save did not write \(its pickle is damaged"),
    ],
    ids=["empty", "zip", "html", "zeros", "truncated", "pickle"],
)
def test_garbage_is_no_checkpoint(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "state_dict.bin"
    path.write_bytes(content)
    with pytest.raises(NotACheckpoint, match=rf"state_dict\.bin: {said}"):
        weights_only.load(path, map_location="cpu")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        weights_only.load(tmp_path / "none", map_location="cpu")


@pytest.mark.filterwarnings("ignore:.*TorchScript", "ignore:.*torch.jit")
def test_torchscript_is_unsafe() -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
    with pytest.raises(UnsafeCheckpoint, match="TorchScript"):
        load(buffer.getvalue())


def test_threads_do_not_take_each_other_s_allow_list() -> None:
    content = saved({"cfg": config(), "weight": torch.ones(100)})
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                assert load(content)["cfg"].dim == 1024
        except BaseException as error:  # noqa: BLE001  carried to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not allowed()


def test_a_path_is_read_through_its_own_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"  # by this name torch would read another format
    path.write_bytes(saved([1, 2]))
    assert weights_only.load(path, map_location="cpu") == [1, 2]
    with memory_file(saved([3])) as fd:
        os.lseek(fd, 7, os.SEEK_SET)
        assert weights_only.load(fd, map_location="cpu") == [3]
        assert os.lseek(fd, 0, os.SEEK_CUR) == 7
