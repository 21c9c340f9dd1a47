"""Random initialisation that is put off, with torch alone."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from craftcache.audiocraft.deferring import Deferral, deferrable, suspended

BOUND = 0.06


def truncated_normal(tensor: torch.Tensor) -> torch.Tensor:
    """What AudioCraft fills its language models with."""
    return nn.init.trunc_normal_(tensor, std=0.02, a=-BOUND, b=BOUND)


@pytest.fixture
def draws_nothing() -> torch.Generator:
    """The random generator, in a known state; see has_drawn."""
    torch.manual_seed(0)
    return torch.default_generator


def has_drawn(generator: torch.Generator) -> bool:
    """Whether a random number was drawn since it was seeded with 0."""
    return not torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(40, 40),
        lambda: nn.Embedding(40, 40),
        lambda: nn.LSTM(20, 20, 2),
        lambda: nn.Conv1d(20, 20, 3),
        lambda: nn.MultiheadAttention(20, 2),
        lambda: nn.TransformerEncoderLayer(20, 2),
        lambda: deferrable(truncated_normal)(torch.empty(40, 40)),
    ],
)
def test_no_random_number_is_drawn(build: object, draws_nothing: torch.Generator) -> None:
    assert callable(build)
    with Deferral():
        build()
    assert not has_drawn(draws_nothing)


def test_what_waits_is_drawn_in_the_end_from_its_own_distribution() -> None:
    deferral = Deferral()
    with deferral:
        linear, embedding = nn.Linear(400, 100), nn.Embedding(100, 400)
        truncated = nn.Linear(100, 100)
        deferrable(truncated_normal)(truncated.weight)
    deferral.draw()
    assert linear.weight.abs().max().item() == pytest.approx(1 / 20, rel=0.01)
    assert linear.weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert linear.bias.abs().max() <= 1 / 20
    assert len(set(linear.bias.tolist())) == 100
    assert embedding.weight.std().item() == pytest.approx(1, rel=0.05)
    assert truncated.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert truncated.weight.abs().max() <= BOUND


def test_what_waits_is_drawn_once() -> None:
    deferral = Deferral()
    with deferral:
        linear = nn.Linear(4, 4)
    deferral.draw()
    drawn = linear.weight.clone()
    deferral.draw()
    assert torch.equal(linear.weight, drawn)


def test_a_reader_sees_what_was_to_be_drawn() -> None:
    deferral = Deferral()
    with deferral:
        weight = torch.full((1000,), -1.0).uniform_(2, 3)
        seen = weight.view(10, 100)[3] * 1
        assert 2 <= weight.min().item() <= weight.max().item() <= 3
    deferral.draw()
    assert torch.equal(weight[300:400], seen)


def test_a_part_that_is_written_stays_written() -> None:
    deferral = Deferral()
    with deferral:
        embedding = nn.Embedding(10, 4, padding_idx=3)
        weight = torch.empty(10).uniform_(2, 3)
        weight[4:].zero_()
        weight.data[0] = 7
    deferral.draw()
    assert not embedding.weight[3].any()
    assert embedding.weight[4].all()
    assert weight.tolist()[0] == 7
    assert weight[4:].tolist() == [0] * 6
    assert weight[1:4].min() >= 2


def test_weights_with_a_norm_are_those_that_they_were_normed_with() -> None:
    deferral = Deferral()
    with deferral:
        conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3))
    deferral.draw()
    magnitude, direction = conv.parametrizations.weight.parameters()
    assert torch.allclose(magnitude, direction.norm(dim=(1, 2), keepdim=True))


@pytest.mark.parametrize("overwrite", ["copy_", "fill_", "zero_", "load_state_dict"])
def test_what_is_overwritten_is_not_drawn(overwrite: str, draws_nothing: torch.Generator) -> None:
    deferral = Deferral()
    with deferral:
        linear = nn.Linear(3, 3, bias=False)
        value = torch.full((3, 3), 0.0 if overwrite == "zero_" else 5.0)
        if overwrite == "load_state_dict":
            linear.load_state_dict({"weight": value})
        else:
            arguments: dict[str, list[object]] = {"copy_": [value], "fill_": [5.0], "zero_": []}
            getattr(linear.weight.data, overwrite)(*arguments[overwrite])
    deferral.draw()
    assert torch.equal(linear.weight, value)
    assert not has_drawn(draws_nothing)


def test_a_copy_from_what_waits_is_drawn_first() -> None:
    deferral = Deferral()
    with deferral:
        source, target = torch.empty(100).uniform_(2, 3), torch.empty(100).uniform_(4, 5)
        target.copy_(source)
    deferral.draw()
    assert torch.equal(source, target)
    assert source.max() <= 3


def test_what_is_freed_is_not_drawn(draws_nothing: torch.Generator) -> None:
    deferral = Deferral()
    with deferral:
        nn.TransformerEncoderLayer(20, 2)
    deferral.draw()
    assert not has_drawn(draws_nothing)


def test_an_alias_keeps_what_waits() -> None:
    deferral = Deferral()
    with deferral:
        alias = torch.full((100,), -1.0).uniform_(2, 3).view(10, 10)
    deferral.draw()
    assert alias.min() >= 2


def test_other_threads_draw_as_ever(draws_nothing: torch.Generator) -> None:
    built: list[object] = []

    def build() -> None:
        built.append(nn.Linear(3, 3))
        built.append(deferrable(truncated_normal)(torch.empty(3)))

    with Deferral():
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
    assert len(built) == 2
    assert has_drawn(draws_nothing)


def test_suspended_draws_as_ever() -> None:
    deferral = Deferral()
    with deferral:
        before = torch.full((9,), -1.0).uniform_(2, 3)
        with suspended():
            drawn = torch.full((9,), -1.0).uniform_(2, 3).tolist()
        torch.manual_seed(0)
        torch.empty(9).uniform_()
        assert not has_drawn(torch.default_generator)
    assert min(drawn) >= 2
    deferral.draw()
    assert before.min() >= 2


def test_outside_of_a_deferral_nothing_is_put_off(draws_nothing: torch.Generator) -> None:
    with suspended():
        deferrable(truncated_normal)(torch.empty(3))
    assert has_drawn(draws_nothing)
