"""What a worker does with built tensors: write to them, share them, outlive the file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

from craftcache.checkpoint.descriptor import DescriptorFile
from craftcache.checkpoint.filling import copy_into
from craftcache.checkpoint.index import Index, Storage, Tensor
from craftcache.checkpoint.mapped import RELEASED_BYTES
from craftcache.checkpoint.tensors import build
from craftcache.errors import InvalidSource, NotACheckpoint, UnknownDevice
from tests.support.checkpoints import (
    assert_same,
    index_of,
    loaded,
    maps_of,
    memory_file,
    resident_bytes,
    saved,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CPU = torch.device("cpu")


@pytest.fixture
def content() -> bytes:
    weight = torch.arange(4096.0)
    return saved({"best_state": {"weight": weight.view(64, 64), "tied": weight}, "epoch": 3})


@pytest.fixture
def fd(content: bytes) -> Iterator[int]:
    with memory_file(content) as fd:
        yield fd


def test_writing_to_tensors_changes_neither_the_file_nor_other_tensors(
    fd: int, content: bytes
) -> None:
    index = index_of(fd)
    ours: Any = build(index, fd, device=CPU)
    ours["best_state"]["weight"].fill_(-1.0)
    assert ours["best_state"]["tied"].eq(-1.0).all()
    assert os.pread(fd, len(content), 0) == content
    assert_same(build(index, fd, device=CPU), loaded(content))


def test_a_read_only_descriptor_is_enough(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state_dict.bin"
    path.write_bytes(content)
    path.chmod(0o444)
    fd = os.open(path, os.O_RDONLY)
    ours = build(index_of(fd), fd, device=CPU)
    os.close(fd)
    path.unlink()
    assert_same(ours, loaded(content))


def test_the_map_lives_as_long_as_one_tensor(fd: int) -> None:
    ours: Any = build(index_of(fd), fd, device=CPU)
    tied = ours["best_state"]["tied"]
    del ours
    assert len(maps_of(fd)) == 1
    assert tied[4095] == 4095.0
    del tied
    assert not maps_of(fd)


def test_a_checkpoint_without_tensors_maps_nothing() -> None:
    with memory_file(saved({"pretrained": "facebook/encodec_32khz"})) as fd:
        index = index_of(fd)
        assert index.pretrained == "facebook/encodec_32khz"
        assert build(index, fd, device=CPU) == {"pretrained": "facebook/encodec_32khz"}


def test_unmapped_tensors_are_read(fd: int, content: bytes) -> None:
    ours = build(index_of(fd), fd, device=CPU, mapped=False)
    assert not maps_of(fd)
    assert_same(ours, loaded(content))


def test_a_file_shorter_than_its_index_is_an_error(fd: int) -> None:
    index = index_of(fd)
    os.ftruncate(fd, index.storages[0].offset + 10)
    with pytest.raises(EOFError):
        build(index, fd, device=CPU, mapped=False)


def test_meta_tensors_have_no_values(fd: int) -> None:
    ours: Any = build(index_of(fd), fd, device=torch.device("meta"))
    weight = ours["best_state"]["weight"]
    assert weight.is_meta
    assert weight.shape == (64, 64)
    assert ours["epoch"] == 3
    assert not maps_of(fd)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_cuda_hold_nothing_of_the_file(fd: int, content: bytes) -> None:
    ours: Any = build(index_of(fd), fd, device=torch.device("cuda"))
    theirs: Any = loaded(content)
    state = ours["best_state"]
    assert not maps_of(fd)
    assert torch.equal(state["weight"].cpu(), theirs["best_state"]["weight"])
    assert state["weight"].data_ptr() == state["tied"].data_ptr()


def test_the_process_s_default_device_does_not_matter(fd: int, content: bytes) -> None:
    index = index_of(fd)
    with torch.device("meta"):
        ours = build(index, fd, device=CPU)
    assert_same(ours, loaded(content))


def test_empty_tensors_do_not_follow_the_default_device() -> None:
    content = saved([torch.empty(0, 3), torch.ones(4)[2:2]])
    with memory_file(content) as fd:
        index = index_of(fd)
        with torch.device("meta"):
            ours = build(index, fd, device=CPU)
    assert_same(ours, loaded(content))


def test_a_dtype_that_this_torch_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "float8_e8m0fnu")
    index = Index(64, "zip", None, [Storage(0, 4)], [Tensor("float8_e8m0fnu", 0, [4])], ["T", 0])
    with memory_file(bytes(64)) as fd, pytest.raises(NotACheckpoint, match="float8_e8m0fnu"):
        build(index, fd, device=CPU)


def test_readers_of_one_descriptor_keep_their_own_positions(fd: int, content: bytes) -> None:
    first, second = DescriptorFile(fd), DescriptorFile(fd)
    assert first.read(10) == content[:10]
    assert second.read(10) == content[:10]
    assert first.seek(-4, os.SEEK_END) == len(content) - 4
    assert first.read() == content[-4:]
    assert first.read(1) == b""
    assert second.seek(2, os.SEEK_CUR) == 12
    with pytest.raises(ValueError, match="negative"):
        second.seek(-1)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0


class Attention(torch.nn.Module):
    """Renames a key as it loads, as AudioCraft's attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(8, 8)
        self.register_buffer("scale", torch.zeros(3))
        hooks: Any = self  # torch leaves the method untyped
        hooks.register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(_: object, state: dict[str, Any], prefix: str, *__: object) -> None:
        if f"{prefix}in_weight" in state:
            state[f"{prefix}projection.weight"] = state.pop(f"{prefix}in_weight")


def test_copy_into_keeps_the_module_s_dtype_and_its_hooks() -> None:
    state = {
        "in_weight": torch.randn(8, 8).half(),
        "projection.bias": torch.randn(8).half(),
        "scale": torch.tensor([1.0, 2.0, 3.0]),
    }
    module = Attention()
    parameter = module.projection.weight
    with memory_file(saved({"best_state": state})) as fd:
        copy_into(index_of(fd), fd, module, key="best_state")
        assert not maps_of(fd)
    assert module.projection.weight is parameter
    assert parameter.dtype is torch.float32
    assert torch.equal(parameter.detach(), state["in_weight"].float())
    assert torch.equal(module.projection.bias.detach(), state["projection.bias"].float())
    assert torch.equal(module.get_buffer("scale"), state["scale"])


class Watching(torch.nn.Linear):
    """Notes how much of the file is in this process after its own weights were copied."""

    def __init__(self, fd: int, resident: list[int]) -> None:
        super().__init__(1024, 1024, bias=False)
        self._fd = fd
        self._resident = resident

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._resident.append(resident_bytes(self._fd))


def test_copy_into_keeps_little_of_the_file_in_memory() -> None:
    layers = 4 + RELEASED_BYTES // (4 * 1024 * 1024)
    weights = {f"{n}.weight": torch.full((1024, 1024), float(n)) for n in range(layers)}
    resident: list[int] = []
    with memory_file(saved(weights)) as fd:
        module = torch.nn.Sequential(*(Watching(fd, resident) for _ in range(layers)))
        copy_into(index_of(fd), fd, module, key=None)
    values = [parameter[0, 0].item() for parameter in module.parameters()]
    assert values == [float(n) for n in range(layers)]
    assert len(resident) == layers
    assert max(resident) <= RELEASED_BYTES + 1024 * 1024


def test_copy_into_copies_tied_weights_twice() -> None:
    weight = torch.randn(2, 2)
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    )
    with memory_file(saved({"0.weight": weight, "1.weight": weight})) as fd:
        copy_into(index_of(fd), fd, module, key=None)
    assert all(torch.equal(parameter, weight) for parameter in module.parameters())


class Converting(torch.nn.Module):
    """Converts an old checkpoint in place before it loads it, by ``convert``."""

    def __init__(self, convert: Callable[[torch.Tensor], object], dtype: torch.dtype) -> None:
        super().__init__()
        self._convert = convert
        for name in "qkv":
            setattr(self, name, torch.nn.Linear(64, 64, bias=False, dtype=dtype))
        hooks: Any = self
        hooks.register_load_state_dict_pre_hook(self._convert_all)

    @staticmethod
    def _convert_all(module: Any, state: dict[str, Any], prefix: str, *_: object) -> None:
        for name in "qkv":
            module._convert(state[f"{prefix}{name}.weight"])


CONVERSIONS: dict[str, Callable[[torch.Tensor], object]] = {
    "torch": lambda weight: weight.mul_(10),
    "data": lambda weight: weight.data.add_(5),
    "numpy": lambda weight: weight.numpy().__imul__(3),
    "transposed": lambda weight: weight.copy_(weight.t().clone()),
    "swapped": lambda weight: weight.set_(
        weight.flip(0).untyped_storage(), 0, weight.shape, (64, 1)
    ),
    "nothing": lambda _: None,
}


def checkpoints_of_three() -> dict[str, dict[str, torch.Tensor]]:
    qkv = torch.arange(3 * 64 * 64.0).view(3, 64, 64)
    return {
        "views": {f"{name}.weight": qkv[n] for n, name in enumerate("qkv")},
        "overlapping": {
            f"{name}.weight": qkv.view(-1)[n * 8 :][: 64 * 64].view(64, 64)
            for n, name in enumerate("qkv")
        },
        "tied": {f"{name}.weight": qkv[0] for name in "qkv"},
        "apart": {f"{name}.weight": qkv[n].clone() for n, name in enumerate("qkv")},
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", CONVERSIONS)
@pytest.mark.parametrize("what", checkpoints_of_three())
def test_copy_into_gives_what_load_state_dict_gives_when_hooks_write(
    what: str, how: str, dtype: torch.dtype
) -> None:
    content = saved(checkpoints_of_three()[what])
    plain, into = (Converting(CONVERSIONS[how], dtype) for _ in range(2))
    state: Any = loaded(content)
    plain.load_state_dict(state)
    with memory_file(content) as fd:
        copy_into(index_of(fd), fd, into, key=None)
    for name, parameter in plain.named_parameters():
        assert torch.equal(into.get_parameter(name), parameter)


def on_meta() -> torch.nn.Module:
    with torch.device("meta"):
        return torch.nn.Linear(2, 2)


def partly_on_meta() -> torch.nn.Module:
    module = torch.nn.Linear(2, 2)
    module.bias = torch.nn.Parameter(torch.empty(2, device="meta"))
    return module


def tied_on_meta() -> torch.nn.Module:
    module = torch.nn.Sequential(on_meta(), torch.nn.Linear(2, 2))
    module[1].weight = module[0].weight
    return module


def with_a_buffer_on_meta() -> torch.nn.Module:
    module = torch.nn.BatchNorm1d(2)
    module.running_mean = torch.empty(2, device="meta")
    return module


def lazy_on_meta() -> torch.nn.Module:
    with torch.device("meta"):
        return torch.nn.LazyLinear(2)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (on_meta, "weight and 1 more are"),
        (partly_on_meta, "bias is"),
        (tied_on_meta, r"0\.weight and 2 more are"),
        (with_a_buffer_on_meta, "running_mean is"),
        (lazy_on_meta, "weight and 1 more are"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("indexed", [True, False])
def test_a_module_without_memory_is_refused_and_left_as_it_was(
    make: Callable[[], torch.nn.Module], named: str, indexed: bool
) -> None:
    module = make()
    before = {name: value.clone() for name, value in parameters_with_values(module).items()}
    state = {name: torch.ones(2) for name in module.state_dict()}
    content = saved(state, _use_new_zipfile_serialization=indexed)
    with (
        memory_file(content) as fd,
        pytest.raises(UnknownDevice, match=rf"org/m: {named} on the meta device.*to_empty"),
    ):
        copy_into(index_of(fd), fd, module, key=None, source="org/m")
    after = parameters_with_values(module)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def parameters_with_values(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.named_parameters() if not value.is_meta}


def test_what_no_state_dict_has_may_be_on_meta() -> None:
    module = torch.nn.Linear(2, 2, bias=False)
    module.register_buffer("scratch", torch.empty(2, device="meta"), persistent=False)
    with memory_file(saved({"weight": torch.ones(2, 2)})) as fd:
        copy_into(index_of(fd), fd, module, key=None)
    assert module.weight.detach().eq(1).all()


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_parameters_are_made_and_filled() -> None:
    module = torch.nn.LazyLinear(2)
    with memory_file(saved({"weight": torch.ones(2, 3), "bias": torch.ones(2)})) as fd:
        copy_into(index_of(fd), fd, module, key=None)
    assert module.weight.detach().eq(1).all()
    assert module.weight.shape == (2, 3)


def test_copy_into_lists_what_does_not_fit() -> None:
    state = {"weight": torch.zeros(2, 2), "extra": torch.zeros(1)}
    with memory_file(saved(state)) as fd:
        index = index_of(fd)
        with pytest.raises(RuntimeError, match=r"(?s)Missing.*bias.*Unexpected.*extra"):
            copy_into(index, fd, torch.nn.Linear(2, 2), key=None)
        with pytest.raises(InvalidSource, match=r"no state dict under 'best_state'.*'weight'"):
            copy_into(index, fd, torch.nn.Linear(2, 2), key="best_state")


def test_copy_into_works_for_files_that_only_torch_loads() -> None:
    module = torch.nn.Linear(2, 2)
    state = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    with memory_file(saved({"state": state}, _use_new_zipfile_serialization=False)) as fd:
        copy_into(index_of(fd), fd, module, key="state")
    assert module.weight.eq(1).all()


def test_private_map_of_a_file_larger_than_memory(tmp_path: Path) -> None:
    size = 1 << 40
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(size)
    index = Index(
        size, "zip", None, [Storage(64, size - 64)], [Tensor("int8", 0, [size - 64])], ["T", 0]
    )
    fd = os.open(path, os.O_RDONLY)
    tensor: Any = build(index, fd, device=CPU)
    os.close(fd)
    assert tensor[-1] == 0
