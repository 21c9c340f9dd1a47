"""Modules that take over the tensors of a state dict, or copy them where they differ."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from craftcache.checkpoint.adopting import adopt
from craftcache.checkpoint.mapped import release
from craftcache.checkpoint.tensors import build
from tests.support.checkpoints import index_of, maps_of, memory_file, resident_bytes, saved

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE = 1024


@pytest.fixture
def fd() -> Iterator[int]:
    """A checkpoint of weights of 4 MiB each."""
    weights = {f"{n}.weight": torch.full((LARGE, LARGE), float(n)) for n in range(4)}
    with memory_file(saved(weights)) as fd:
        yield fd


def mapped(fd: int) -> Any:
    return build(index_of(fd), fd, device=torch.device("cpu"))


def layers(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(LARGE, LARGE, bias=False, dtype=dtype) for _ in range(4)))


def test_equal_tensors_are_taken_over_and_not_read(fd: int) -> None:
    module = layers()
    parameters = list(module.parameters())
    assert not any(adopt(module, mapped(fd)))
    assert resident_bytes(fd) < LARGE
    assert all(mine is its for mine, its in zip(parameters, module.parameters(), strict=True))
    assert [weight[0, 0].item() for weight in parameters] == [0.0, 1.0, 2.0, 3.0]
    assert all(weight.requires_grad and weight.is_leaf for weight in parameters)
    parameters[2].data.fill_(7.0)
    assert mapped(fd)["2.weight"].eq(2.0).all()


def test_others_are_cast_and_their_pages_given_back(fd: int) -> None:
    module = layers(torch.float64)
    adopt(module, mapped(fd))
    assert not maps_of(fd)
    assert [weight[0, 0].item() for weight in module.parameters()] == [0.0, 1.0, 2.0, 3.0]
    assert all(weight.dtype is torch.float64 for weight in module.parameters())


class Watching(nn.Linear):
    """Notes how much of the file is in memory after its own weights were loaded."""

    def __init__(self, fd: int, resident: list[int]) -> None:
        super().__init__(LARGE, LARGE, bias=False, dtype=torch.float64)
        self._fd = fd
        self._resident = resident

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._resident.append(resident_bytes(self._fd))


def test_a_cast_keeps_no_more_than_one_storage_in_memory(fd: int) -> None:
    resident: list[int] = []
    adopt(nn.Sequential(*(Watching(fd, resident) for _ in range(4))), mapped(fd))
    assert len(resident) == 4
    assert max(resident) < LARGE * LARGE


@pytest.fixture
def pair() -> tuple[nn.Linear, nn.Linear]:
    return nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)


def test_tied_parameters_stay_tied(pair: tuple[nn.Linear, nn.Linear]) -> None:
    first, second = pair
    second.weight = first.weight
    adopt(nn.Sequential(*pair), {"0.weight": torch.zeros(2, 2), "1.weight": torch.ones(2, 2)})
    assert first.weight is second.weight
    assert first.weight.detach().eq(1).all()


def test_parameters_that_share_memory_go_on_sharing_it(pair: tuple[nn.Linear, nn.Linear]) -> None:
    first, second = pair
    second.weight = nn.Parameter(first.weight.data)
    adopt(nn.Sequential(*pair), {"0.weight": torch.zeros(2, 2), "1.weight": torch.ones(2, 2)})
    first.weight.data.fill_(3.0)
    assert second.weight.detach().eq(3).all()


def test_one_tensor_for_two_parameters_is_not_shared_by_them(
    pair: tuple[nn.Linear, nn.Linear],
) -> None:
    first, second = pair
    weight = torch.ones(2, 2)
    adopt(nn.Sequential(*pair), {"0.weight": weight, "1.weight": weight})
    first.weight.data.fill_(3.0)
    assert second.weight.detach().eq(1).all()


class Scaling(nn.Linear):
    """Converts an old checkpoint as it loads, in place."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(LARGE, LARGE, bias=False, dtype=dtype)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict[f"{prefix}weight"].mul_(10)
        super()._load_from_state_dict(state_dict, prefix, *args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["taken", "cast"])
def test_what_is_converted_in_place_for_one_stays_right_for_another(dtype: torch.dtype) -> None:
    weight = torch.ones(LARGE, LARGE)
    with memory_file(saved({"0.weight": weight, "1.weight": weight})) as fd:
        ours, plain = (nn.Sequential(Scaling(dtype), Scaling(dtype)) for _ in range(2))
        adopt(ours, mapped(fd))
        plain.load_state_dict(mapped(fd))
    assert plain.get_parameter("1.weight").eq(100).all()
    for mine, its in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_sparse_entries_are_copied() -> None:
    module = nn.Module()
    module.register_buffer("weight", torch.zeros(2, 2).to_sparse())
    adopt(module, {"weight": torch.eye(2).to_sparse()})
    assert module.get_buffer("weight").to_dense().eq(torch.eye(2)).all()


def test_a_recurrent_module_computes_with_what_it_took_over() -> None:
    module, like = nn.LSTM(4, 4, 2), nn.LSTM(4, 4, 2)
    adopt(module, {name: tensor.clone() for name, tensor in like.state_dict().items()})
    sequence = torch.randn(3, 4)
    assert torch.equal(module(sequence)[0], like(sequence)[0])


def test_no_more_than_a_parameter_is_saved_of_a_larger_storage() -> None:
    module = nn.Linear(2, 2, bias=False)
    adopt(module, {"weight": torch.ones(100_000)[:4].view(2, 2)})
    buffer = io.BytesIO()
    torch.save(module.weight, buffer)
    assert buffer.tell() < 10_000


def test_strides_stay_those_of_the_module() -> None:
    module = nn.Linear(2, 3, bias=False)
    adopt(module, {"weight": torch.arange(6.0).view(2, 3).t()})
    assert module.weight.is_contiguous()
    assert module.weight.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_torchs_own_errors_are_raised() -> None:
    state = {"weight": torch.zeros(3, 3), "extra": torch.zeros(1)}
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*bias.*Unexpected.*extra.*size mismatch"):
        adopt(nn.Linear(2, 2), state)
    assert adopt(nn.Linear(3, 3), state, strict=False).missing_keys == ["bias"]


def test_release_leaves_memory_that_is_no_map_alone() -> None:
    weight = torch.ones(LARGE, LARGE)
    release(weight)
    assert weight.eq(1).all()


@pytest.mark.parametrize("written", [0, 5, LARGE - 1], ids=["first", "inner", "last"])
@pytest.mark.parametrize("way", ["torch", "data", "numpy", "another tensor of the storage"])
def test_what_was_written_is_kept_whichever_way(fd: int, way: str, written: int) -> None:
    weight = mapped(fd)["1.weight"]
    row = weight[written]
    if way == "torch":
        row.fill_(7.0)
    elif way == "data":
        row.data.fill_(7.0)
    elif way == "numpy":
        row.numpy()[:] = 7.0
    else:
        torch.empty(0).set_(weight.untyped_storage()).view(LARGE, LARGE)[written].fill_(7.0)
    release(weight)
    assert weight[written].eq(7.0).all()
    assert weight.sum() == LARGE * LARGE + 6 * LARGE


def test_what_was_read_only_is_released(fd: int) -> None:
    weight = mapped(fd)["1.weight"]
    assert weight.eq(1.0).all()
    before = resident_bytes(fd)
    release(weight)
    assert resident_bytes(fd) <= before - LARGE * LARGE * 4 + 2 * 65536
    assert weight.eq(1.0).all()


def test_release_leaves_neighbours_alone() -> None:
    names = [str(number) for number in range(100)]
    with memory_file(saved({name: torch.zeros(600) for name in names})) as fd:
        tensors = mapped(fd)
    for name in names[1::2]:
        tensors[name].fill_(1.0)
    for name in names[::2]:
        release(tensors[name])
    assert all(tensors[name].eq(1).all() for name in names[1::2])
