"""A process in which somebody has replaced how torch loads: no code of a checkpoint runs."""

from __future__ import annotations

import copyreg
import functools
import io
import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch._weights_only_unpickler
from omegaconf import DictConfig, OmegaConf
from torch.serialization import get_safe_globals, safe_globals

from craftcache.checkpoint import weights_only
from craftcache.errors import UnsafeCheckpoint
from tests.support.checkpoints import memory_file, saved

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Gadget:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


class Mine:
    """What a process may allow."""


def forced(original: Callable[..., Any]) -> Callable[..., Any]:
    """As user interfaces do it."""

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        kwargs["weights_only"] = False
        return original(*args, **kwargs)

    return load


def unpickled(file: Any, **_: Any) -> Any:
    """A loader that knows no rules at all."""
    file.seek(0)
    return pickle.load(file)


REPLACED: dict[str, dict[Any, dict[str, Any]]] = {
    "torch.load": {torch: {"load": forced(torch.load)}},
    "torch.load, by partial": {torch: {"load": functools.partial(torch.load, weights_only=False)}},
    "torch.load, by pickle": {torch: {"load": unpickled}},
    "torch.serialization.load": {torch.serialization: {"load": forced(torch.load)}},
    "both": {
        torch: {"load": forced(torch.load)},
        torch.serialization: {"load": forced(torch.load)},
    },
    "its inner loaders": {
        torch.serialization: {"_load": unpickled, "_legacy_load": unpickled},
    },
    "its unpickler": {
        torch.serialization: {"_weights_only_unpickler": pickle},
        torch._weights_only_unpickler: {"Unpickler": pickle.Unpickler, "load": pickle.load},
    },
    "pickle": {
        pickle: {
            "Unpickler": pickle._Unpickler,
            "load": pickle._load,  # type: ignore[attr-defined]
            "loads": pickle._loads,  # type: ignore[attr-defined]
        }
    },
    "nothing": {},
}
"""Attributes that are replaced, by what has them."""


@pytest.fixture(params=REPLACED)
def replaced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, attributes in REPLACED[request.param].items():
        for name, value in attributes.items():
            monkeypatch.setattr(owner, name, value)


@pytest.fixture(params=["torch", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "torch":
        monkeypatch.setenv(request.param, "1")


@pytest.fixture(params=["copied before", "copied after"])
def when(request: pytest.FixtureRequest) -> None:
    """Whether craftcache is imported before the process replaces anything, or after."""
    from craftcache.checkpoint import torch_load

    torch_load._copied.cache_clear()
    if request.param == "copied before":
        torch_load._own_serialization()


def load(content: bytes) -> Any:
    with memory_file(content) as fd:
        return weights_only.load(fd, map_location="cpu")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.usefixtures("when", "replaced", "environment")
def test_no_code_runs(tmp_path: Path, legacy: bool) -> None:
    mark = tmp_path / "ran"
    content = saved({"a": Gadget(mark)}, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeCheckpoint, match=r"posix\.mkdir"):
        load(content)
    assert not mark.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.usefixtures("when", "replaced")
def test_what_is_harmless_is_loaded(legacy: bool) -> None:
    config = OmegaConf.create({"dim": 4, "layers": [1, 2]})
    weight = torch.nn.Parameter(torch.ones(2))
    content = saved(
        {"cfg": config, "w": weight, "b": torch.ones(2, dtype=torch.bfloat16)},
        _use_new_zipfile_serialization=not legacy,
    )
    ours = load(content)
    assert ours["cfg"] == config
    assert type(ours["cfg"]) is DictConfig
    assert type(ours["w"]) is torch.nn.Parameter
    assert ours["b"].dtype is torch.bfloat16


@pytest.mark.usefixtures("when")
def test_what_the_process_allows_is_loaded_and_nothing_else_of_it_changes() -> None:
    layout, before = copyreg.dispatch_table[torch.layout], set(get_safe_globals())
    with pytest.raises(UnsafeCheckpoint, match="Mine"):
        load(saved({"mine": Mine()}))
    with safe_globals([Mine]):
        assert type(load(saved({"mine": Mine()}))["mine"]) is Mine
    assert set(get_safe_globals()) == before
    assert copyreg.dispatch_table[torch.layout] is layout
    buffer = io.BytesIO()
    torch.save({"layout": torch.strided}, buffer)
    assert load(buffer.getvalue()) == {"layout": torch.strided}


def test_devices_that_an_extension_registered_are_known() -> None:
    from torch.serialization import _package_registry, register_package

    before = list(_package_registry)
    register_package(5, lambda _: None, lambda storage, at: storage if at == "cpu" else None)
    try:
        assert load(saved([torch.ones(2)]))[0].eq(1).all()
    finally:
        _package_registry[:] = before
