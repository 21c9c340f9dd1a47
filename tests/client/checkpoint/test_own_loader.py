"""What is loaded by our own means where torch is old: the same, under any torch."""

from __future__ import annotations

import os
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from omegaconf import DictConfig, OmegaConf

from craftcache.checkpoint import own_loader, weights_only
from craftcache.errors import NotACheckpoint, UnsafeCheckpoint
from tests.support.checkpoints import assert_same, checkpoints, loaded, memory_file, rezipped, saved
from tests.support.pickles import Op, archive

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support")  # torch's, on sight of one

NEWER = r"needs a newer torch than \S+\. torch 2\.6 or newer loads it"


class Gadget:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def load(content: bytes, device: torch.device = CPU) -> Any:
    with memory_file(content) as fd:
        return own_loader.load(fd, device=device, source="org/name")


def load_by_torch(content: bytes) -> Any:
    with memory_file(content) as fd:
        return weights_only.load(fd, map_location="cpu")


def config() -> DictConfig:
    """With what composing it by Hydra leaves in it."""
    cfg = OmegaConf.create({"dim": 1024, "layers": [1, {"name": "x"}, None], "same": "${dim}"})
    OmegaConf.get_cache(cfg)["resolver"]["4"] = 8
    return cfg


@settings(deadline=None)
@given(checkpoints())
def test_what_an_index_can_hold_is_what_torch_loads(checkpoint: object) -> None:
    content = saved(checkpoint)
    assert_same(load(content), loaded(content))


def shared() -> list[int]:
    return [1, 2]


@pytest.mark.parametrize(
    "value",
    [
        [list_ := shared(), list_],
        Counter("abca"),
        defaultdict(list, {"x": [1]}),
        {1, 2},
        b"bytes",
        bytearray(b"more"),
        1 + 2j,
        torch.Size([2, 3]),
        torch.device("cuda:1"),
        torch.bfloat16,
        OrderedDict(size=torch.Size([1])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_it_cannot_hold_is_what_torch_loads(value: object) -> None:
    weight = torch.arange(6.0)
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    content = saved({"value": value, "tied": [weight[2:], weight.view(2, 3).t()], "p": parameter})
    ours = load(content)
    assert_same(ours, load_by_torch(content))
    assert type(ours["value"]) is type(value)


def test_omegaconf_objects_are_what_torch_loads() -> None:
    content = saved({0: {"cfg": config(), "weight": torch.ones(2)}, "n_bands": 1})
    ours, theirs = load(content)[0], load_by_torch(content)[0]
    assert type(ours["cfg"]) is DictConfig
    assert ours["cfg"] == theirs["cfg"] == config()
    assert ours["cfg"].same == 1024
    assert OmegaConf.get_cache(ours["cfg"]) == OmegaConf.get_cache(theirs["cfg"])
    assert type(OmegaConf.get_cache(ours["cfg"])) is defaultdict
    assert_same(ours["weight"], theirs["weight"])


def test_tensors_beside_other_objects_go_to_their_device() -> None:
    ours = load(
        saved({"cfg": config(), "w": [torch.ones(2, 3), torch.ones(0)]}), torch.device("meta")
    )
    assert [(w.device.type, w.shape) for w in ours["w"]] == [("meta", (2, 3)), ("meta", (0,))]


@pytest.mark.parametrize(
    "content",
    [
        saved({"w": torch.eye(2).to_sparse()}),
        saved({"cfg": config(), "w": torch.ones(2)}, _use_new_zipfile_serialization=False),
        rezipped(saved({"w": torch.ones(20), "cfg": config()}), compress=True),
        rezipped(saved({"w": torch.ones(20)}), byteorder=b"big"),
    ],
    ids=["sparse", "legacy", "compressed", "big-endian"],
)
def test_what_only_a_newer_torch_loads_is_refused_with_its_version(content: bytes) -> None:
    with pytest.raises(NotACheckpoint, match=NEWER):
        load(content)


@pytest.mark.parametrize("beside", [{}, {"cfg": config()}], ids=["alone", "beside"])
def test_gadgets_are_refused_by_name(tmp_path: Path, beside: dict[str, object]) -> None:
    with pytest.raises(UnsafeCheckpoint, match=r"org/name: .*posix\.mkdir"):
        load(saved({**beside, "weight": Gadget(tmp_path / "ran")}))
    assert not (tmp_path / "ran").exists()


CLASS = Op.name("omegaconf.dictconfig.DictConfig")


@pytest.mark.parametrize(
    ("pickled", "error"),
    [
        (CLASS + Op.value((None, {"__class__": 1})) + b"b", UnsafeCheckpoint),
        (Op.name("omegaconf.dictconfig.DictConfig.__init__") + b")R", UnsafeCheckpoint),
        (Op.call("builtins.getattr", CLASS, Op.value("mro")), UnsafeCheckpoint),
        (CLASS + b")\x81" + Op.value("no state") + b"b", NotACheckpoint),
        (CLASS + b")\x81" + Op.value({"_metadata": 1}) + b"b", NotACheckpoint),
    ],
    ids=["class", "method", "getattr", "state", "ill-typed"],
)
def test_no_file_changes_or_calls_what_it_should_not(
    pickled: bytes, error: type[Exception]
) -> None:
    before = dict(vars(DictConfig))
    with pytest.raises(error):
        load(archive(Op.START + pickled + Op.STOP))
    assert dict(vars(DictConfig)) == before


def test_the_reader_is_asked_first(tmp_path: Path) -> None:
    """Whatever Python's own unpickler would do, it does not get to see it."""
    pickled = pickle.dumps(Gadget(tmp_path / "ran"), 2)
    with pytest.raises(UnsafeCheckpoint):
        load(archive(pickled))
    assert not (tmp_path / "ran").exists()


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved({"cfg": config()})
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", None)
    with pytest.raises(NotACheckpoint, match=r"holds a omegaconf\.dictconfig\.DictConfig, which"):
        load(content)
