"""Tensors in shared memory are what torch.load returns, and keep the memory and its lease."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from craftcache.checkpoint.in_shared_memory import build_shared
from craftcache.checkpoint.index import Index, Storage
from craftcache.checkpoint.shareable import why_not_shareable
from craftcache.device.sharing import Lease, NotShared, find_shared_device
from tests.support.checkpoints import assert_same, checkpoints, index_of, loaded, memory_file, saved
from tests.support.gpu.memfd import MemfdMapper, MemfdMemory

if TYPE_CHECKING:
    from craftcache.device.sharing import SharedSpans

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support")  # torch's, on sight of one


def mapped(content: bytes) -> tuple[SharedSpans, int]:
    """A block with that content, mapped by its lease, and the other end of that."""
    memory = MemfdMemory()
    block = memory.create(max(len(content), 1))
    os.pwrite(block.descriptor, content, 0)
    ours, theirs = os.pipe()
    spans = MemfdMapper().map(block.descriptor, block.nbytes, Lease(theirs))
    block.close()
    return spans, ours


def is_given_back(lease: int) -> bool:
    os.set_blocking(lease, False)
    try:
        return os.read(lease, 1) == b""
    except BlockingIOError:
        return False


@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(checkpoints())
def test_random_checkpoints_are_exact(checkpoint: object) -> None:
    content = saved(checkpoint)
    with memory_file(content) as fd:
        index = index_of(fd)
    assert why_not_shareable(index) is None
    spans, lease = mapped(content)
    assert_same(build_shared(index, spans, CPU), loaded(content))
    os.close(lease)


def test_the_last_tensor_lets_go_of_map_and_lease() -> None:
    content = saved(
        {"a": torch.ones(4), "b": torch.zeros(4), "p": torch.nn.Parameter(torch.ones(2))}
    )
    with memory_file(content) as fd:
        index = index_of(fd)
    spans, lease = mapped(content)
    built: Any = build_shared(index, spans, CPU)
    del spans
    view = built.pop("b")[1:2]
    parameter = built.pop("p")
    built.clear()
    assert not is_given_back(lease)
    del view
    assert not is_given_back(lease)
    assert parameter.tolist() == [1.0, 1.0]
    del parameter
    gc.collect()
    assert is_given_back(lease)
    os.close(lease)


def test_legacy_files_are_not_shared() -> None:
    content = saved({"a": torch.ones(3)}, _use_new_zipfile_serialization=False)
    with memory_file(content) as fd:
        why = why_not_shareable(index_of(fd))
    assert why == "its storages do not lie at multiples of 64 bytes"


def test_what_an_index_cannot_say_is_not_shared() -> None:
    assert why_not_shareable(None) == "it has no index"
    reason = Index(10, "zip", "a cycle", [], [], None)
    assert why_not_shareable(reason) == "only torch can read it: a cycle"


def test_where_nothing_lies_makes_no_difference() -> None:
    assert (
        why_not_shareable(Index(100, "zip", None, [Storage(33, 0), Storage(64, 8)], [], None))
        is None
    )
    assert why_not_shareable(Index(100, "zip", None, [Storage(33, 1)], [], None)) is not None


def test_the_cpu_shares_files_and_nothing_else() -> None:
    assert find_shared_device(CPU) is None
    assert find_shared_device(torch.device("meta")) is None
    with pytest.raises(NotShared, match="memory of xpu:0 cannot be shared"):
        find_shared_device(torch.device("xpu", 0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_the_driver_there_is_a_reason_and_what_to_do() -> None:
    with pytest.raises(NotShared) as why:
        find_shared_device(torch.device("cuda", 0))
    assert "craftcache[gpu]" in why.value.hint
