"""Where models are built, on a device that has no memory."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from craftcache.audiocraft.deferring import Deferral
from craftcache.audiocraft.placing import anywhere_else, placed_on

META = torch.device("meta")


def build() -> nn.Module:
    """A part of a codec."""
    conv = nn.Conv1d(8, 8, 3)
    nn.utils.parametrizations.weight_norm(conv)
    return conv


def devices(module: nn.Module) -> set[str]:
    """The kinds of device that its parameters are on."""
    return {parameter.device.type for parameter in module.parameters()}


def test_what_asks_for_no_device_is_made_on_the_model_s() -> None:
    with Deferral(), placed_on(META):
        built, asked = build(), torch.empty(3, device="cpu")
    assert devices(built) == {"meta"}
    assert asked.device.type == "cpu"
    assert devices(build()) == {"cpu"}


def test_on_the_cpu_another_default_device_stays_what_it_is() -> None:
    with META, placed_on(torch.device("cpu")):
        assert devices(build()) == {"meta"}


def test_anywhere_else_nothing_is_placed() -> None:
    with placed_on(META):
        with anywhere_else():
            assert devices(build()) == {"cpu"}
        assert devices(build()) == {"meta"}
    with anywhere_else():
        assert devices(build()) == {"cpu"}


def test_other_threads_make_their_tensors_as_ever() -> None:
    built: list[nn.Module] = []
    with placed_on(META):
        thread = threading.Thread(target=lambda: built.append(build()))
        thread.start()
        thread.join()
    assert [devices(module) for module in built] == [{"cpu"}]


def test_after_an_error_nothing_is_placed() -> None:
    def fail() -> None:
        with placed_on(META), anywhere_else():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert devices(build()) == {"cpu"}
    with anywhere_else():
        assert devices(build()) == {"cpu"}
