"""A checkpoint built from its index is what torch.load returns, in all that can be observed."""

from __future__ import annotations

import os
import struct
from collections import Counter, OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings

from craftcache.checkpoint import index as index_format
from craftcache.checkpoint.reader import read_index
from craftcache.checkpoint.tensors import build
from tests.support.checkpoints import assert_same, checkpoints, loaded, memory_file, rezipped, saved

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support")  # torch's, on sight of one

EXPORT = Path(__file__).parents[1] / "data" / "musicgen-tiny"


def index_of(fd: int) -> index_format.Index:
    return index_format.parse(index_format.dump(read_index(fd)), file_size=os.fstat(fd).st_size)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(checkpoints())
@example(OrderedDict())
@example({"tied": [tensor := torch.arange(6.0), tensor, tensor[2:4], tensor.view(2, 3).t()]})
@example([torch.zeros(3).expand(4, 3), torch.tensor(1), torch.zeros(0, 5), torch.zeros(2, 0, 3)])
def test_random_checkpoints_are_indexed_exactly(checkpoint: object) -> None:
    content = saved(checkpoint)
    with memory_file(content) as fd:
        index = index_of(fd)
        assert index.reason is None
        assert_same(build(index, fd, device=CPU), loaded(content))
        assert_same(build(index, fd, device=CPU, mapped=False), loaded(content))


@pytest.mark.parametrize("name", ["state_dict.bin", "compression_state_dict.bin"])
def test_real_export_is_what_torch_loads(name: str) -> None:
    content = (EXPORT / name).read_bytes()
    with memory_file(content) as fd:
        index = index_of(fd)
        assert index.reason is None
        assert_same(build(index, fd, device=CPU), loaded(content))


def test_state_dict_of_a_module_keeps_its_metadata() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    content = saved({"best_state": module.state_dict()})
    with memory_file(content) as fd:
        ours: Any = build(index_of(fd), fd, device=CPU)
    assert_same(ours, loaded(content))
    assert ours["best_state"]._metadata["1"] == {"version": 2}


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), 0.5, 3, torch.quint8)


def with_attribute() -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.ones(2))
    vars(parameter)["scale"] = 3
    return parameter


def nested(depth: int) -> object:
    return [nested(depth - 1)] if depth else 1


INEXACT: dict[str, Callable[[], object]] = {
    "set": lambda: {"steps": {1}},
    "bytes": lambda: {"raw": b"abc", "array": bytearray(b"abc")},
    "complex": lambda: [1j],
    "Counter": lambda: Counter("aab"),
    "torch.Size": lambda: torch.Size([2]),
    "dtype": lambda: {"dtype": torch.float16},
    "device": lambda: {"device": torch.device("cuda:0")},
    "storage": lambda: {"raw": torch.ones(2).untyped_storage()},
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": quantized,
    "conjugated": lambda: torch.tensor([1j]).conj(),
    "meta": lambda: torch.ones(3, device="meta"),
    "attributes": with_attribute,
    "buffer": lambda: torch.nn.Buffer(torch.ones(2)),
    "one list twice": lambda: [shared := [1], shared],
    "deep": lambda: nested(100),
}


@pytest.mark.filterwarnings(
    "ignore:Sparse CSR tensor support is in beta", "ignore:.*quantiz.*", "ignore:TypedStorage"
)
@pytest.mark.parametrize("kind", INEXACT)
def test_what_an_index_cannot_say_is_loaded_by_torch(kind: str) -> None:
    content = saved(INEXACT[kind]())
    with memory_file(content) as fd:
        index = index_of(fd)
        ours = build(index, fd, device=CPU)
    assert index.reason
    assert not index.tensors
    assert type(ours) is type(loaded(content))
    assert str(ours) == str(loaded(content))


def test_cycle_has_a_reason() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    with memory_file(saved(cycle)) as fd:
        index = index_of(fd)
        ours: Any = build(index, fd, device=CPU)
    assert index.reason == "one container is in two places"
    assert ours[0] is ours


CONTAINERS = {
    "compressed": lambda data: rezipped(saved(data), compress=True),
    "big-endian": lambda data: rezipped(saved(data), byteorder=b"big"),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_unusual_containers_are_loaded_by_torch(container: str) -> None:
    whole = torch.arange(6.0)
    content = CONTAINERS[container]({"a": whole, "b": whole[2:], "version": "1.0", "n": 3})
    with memory_file(content) as fd:
        index = index_of(fd)
        assert index.reason
        assert index.format == "zip"
        assert index.value("version") == "1.0"
        assert index.value("n") == 3
        assert index.value("a") is None
        assert_same(build(index, fd, device=CPU), loaded(content))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(checkpoints())
@example({"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(3), "c": torch.ones(2).double()})
@example([tensor := torch.arange(6.0), tensor[2:4], torch.zeros(3).expand(4, 3)])
def test_legacy_files_are_indexed_exactly_wherever_their_storages_lie(checkpoint: object) -> None:
    content = saved(checkpoint, _use_new_zipfile_serialization=False)
    with memory_file(content) as fd:
        index = index_of(fd)
        if index.reason:  # torch writes these and cannot read them
            assert index.reason == "it holds an untyped storage in the format of torch before 1.6"
            with pytest.raises(AttributeError):
                loaded(content)
            return
        assert index.format == "legacy"
        assert_same(build(index, fd, device=CPU), loaded(content))
        assert_same(build(index, fd, device=CPU, mapped=False), loaded(content))


def test_archive_of_another_writer_is_exact_wherever_its_records_lie() -> None:
    for length in range(16):
        content = rezipped(saved({"k" * length: torch.arange(3.0), "b": torch.ones(2)}))
        with memory_file(content) as fd:
            index = index_of(fd)
            assert index.reason in (None, "a tensor is not aligned in the file")
            assert_same(build(index, fd, device=CPU), loaded(content))


def test_archives_beyond_4_gb_are_indexed_where_torch_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    tensors = {"large": torch.empty(2**31 + 7, dtype=torch.float16)}  # memory that is not touched
    tensors |= {f"small.{n}": torch.empty(5) for n in range(3)}
    with torch.serialization.skip_data():  # a file of holes
        torch.save(tensors, path)
    del tensors
    fd = os.open(path, os.O_RDWR)
    index = index_of(fd)
    assert index.reason is None
    for number, storage in enumerate(index.storages):
        os.pwrite(fd, struct.pack("<f", number + 0.5), storage.offset)
    ours: Any = build(index, fd, device=CPU)
    os.close(fd)
    theirs = torch.load(path, mmap=True)
    assert list(ours) == list(theirs)
    assert all(ours[name].shape == theirs[name].shape for name in ours)
    assert [ours[name][0].item() for name in ours] == [theirs[name][0].item() for name in ours]
    assert ours["small.2"][0] == 3.5
