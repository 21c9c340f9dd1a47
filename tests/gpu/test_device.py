"""What a checkpoint is on a device, and what a load leaves there.

On a machine with a CUDA device all of it runs there; elsewhere on an emulated one.
"""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch

import craftcache
from craftcache import Client
from craftcache.checkpoint.adopting import adopt
from craftcache.checkpoint.filling import copy_into
from craftcache.checkpoint.reader import read_index
from craftcache.checkpoint.tensors import build
from craftcache.device.staging import DEFAULT_BYTES
from craftcache.errors import DeviceMemoryFull

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from craftcache.checkpoint.index import Index
    from tests.gpu.targets import Target

CPU = torch.device("cpu")

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or bool(os.environ.get("CRAFTCACHE_TEST_DRY_RUN")),
    reason="needs a CUDA device",
)

SIZES = (0, 1, 3, 1000, 65_535, 65_536, 65_537, 3 << 20, (8 << 20) - 3, 8 << 20, (17 << 20) + 5)


def checkpoint() -> dict[str, Any]:
    """Tensors of many sizes and kinds, some of which share storage."""
    generator = torch.Generator().manual_seed(14)
    state: OrderedDict[str, Any] = OrderedDict()
    for size in SIZES:
        state[f"of {size}"] = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    weight = torch.randn(300, 200, generator=generator)
    state["weight"], state["tied"], state["turned"] = weight, weight.view(-1)[7:99], weight.t()
    state["parameter"] = torch.nn.Parameter(torch.randn(40, 5, generator=generator))
    state["frozen"] = torch.nn.Parameter(torch.randn(4, generator=generator), requires_grad=False)
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool):
        state[str(dtype)] = torch.randn(1000, generator=generator).to(dtype)
    state["scalar"] = torch.tensor(2.5)
    return {"best_state": state, "xp.cfg": "solver: musicgen\n", "epoch": 3}


@pytest.fixture(scope="module")
def saved() -> bytes:
    buffer = io.BytesIO()
    torch.save(checkpoint(), buffer)
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path: Path, saved: bytes) -> Path:
    path = tmp_path / "state_dict.bin"
    path.write_bytes(saved)
    return path


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def brought(fd: int, target: Target, **options: Any) -> Any:
    return build(read_index(fd), fd, device=target.device, link=target.link, **options)


def theirs(saved: bytes, device: torch.device) -> Any:
    return torch.load(io.BytesIO(saved), map_location=device, weights_only=True)


def assert_same(ours: Any, loaded: Any) -> None:
    """All that can be observed of the tensors is equal, the sharing of storages included."""
    assert list(ours) == list(loaded)
    assert {name: ours[name] for name in ("xp.cfg", "epoch")} == {
        name: loaded[name] for name in ("xp.cfg", "epoch")
    }
    mine, yours = ours["best_state"], loaded["best_state"]
    assert type(mine) is type(yours)
    assert list(mine) == list(yours)
    for name in mine:
        a, b = mine[name], yours[name]
        assert type(a) is type(b), name
        for attribute in ("dtype", "device", "shape", "requires_grad", "is_leaf"):
            assert getattr(a, attribute) == getattr(b, attribute), (name, attribute)
        assert a.stride() == b.stride(), name
        assert a.storage_offset() == b.storage_offset(), name
        assert a.untyped_storage().nbytes() == b.untyped_storage().nbytes(), name
        assert torch.equal(a.detach().cpu(), b.detach().cpu()), name
    assert mine["tied"].data_ptr() == mine["weight"].data_ptr() + 7 * 4
    assert mine["turned"].data_ptr() == mine["weight"].data_ptr()


@pytest.mark.parametrize("direct", [True, False])
def test_it_is_what_torch_load_returns(fd: int, saved: bytes, target: Target, direct: bool) -> None:
    for _ in range(3):
        assert_same(brought(fd, target, direct=direct), theirs(saved, target.device))


def test_a_file_that_is_not_in_the_page_cache(fd: int, saved: bytes, target: Target) -> None:
    for direct in (True, False):
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert_same(brought(fd, target, direct=direct), theirs(saved, target.device))


def test_the_client_loads_a_local_file(path: Path, saved: bytes, target: Target) -> None:
    with Client(fallback="none") as client:
        ours = client.load_state_dict(path, device=target.device)
        assert_same(ours, theirs(saved, target.device))
        assert_same(client.load(path, target.device, ("lm",)).lm, theirs(saved, target.device))


def test_many_threads_load_at_once(fd: int, saved: bytes, target: Target) -> None:
    loaded = theirs(saved, target.device)
    with ThreadPoolExecutor(6) as pool:
        for ours in pool.map(lambda _: brought(fd, target), range(12)):
            assert_same(ours, loaded)


def test_nothing_but_the_tensors_stays(fd: int, target: Target) -> None:
    index = read_index(fd)
    before = target.used_bytes()
    ours = brought(fd, target)
    target.synchronize()
    rounded = sum(-(-storage.nbytes // 512) * 512 for storage in index.storages)
    # torch does not split what would be left of a block that is less than 1 MiB larger.
    larger = sum(1 << 20 for storage in index.storages if storage.nbytes > 1 << 20)
    assert target.used_bytes() - before <= rounded + (larger if target.is_real else 0)
    del ours
    target.synchronize()
    assert target.used_bytes() == before
    target.link.ring.close()
    assert not target.link.ring.held_bytes


def test_memory_that_was_just_freed_is_not_overwritten_by_what_used_it(
    fd: int, saved: bytes, target: Target
) -> None:
    """Work that is under way on the caller's stream still writes to memory that the load gets."""
    loaded = theirs(saved, target.device)
    for _ in range(5 if target.is_real else 1):
        for size in SIZES[1:]:
            busy = torch.empty(size, dtype=torch.uint8, device=target.device)
            for value in range(30 if target.is_real else 3):
                busy.fill_(value)
            del busy
        assert_same(brought(fd, target), loaded)


@needs_cuda
def test_a_stream_of_the_caller_s_own(fd: int, saved: bytes, target: Target) -> None:
    loaded = theirs(saved, target.device)
    stream = torch.cuda.Stream(target.device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            ours = brought(fd, target)
            doubled = ours["best_state"]["weight"] * 2
            assert torch.equal(doubled.cpu(), loaded["best_state"]["weight"].cpu() * 2)
            del ours, doubled


@needs_cuda
def test_too_little_memory_is_said_and_may_be_tried_again(
    fd: int, saved: bytes, target: Target
) -> None:
    torch.cuda.empty_cache()
    needed = sum(storage.nbytes for storage in read_index(fd).storages)
    free, total = torch.cuda.mem_get_info(target.device)
    reserved = torch.cuda.memory_reserved(target.device)
    torch.cuda.set_per_process_memory_fraction((reserved + needed // 2) / total, target.device)
    try:
        with pytest.raises(DeviceMemoryFull) as caught:
            brought(fd, target)
        assert caught.value.retryable
        assert caught.value.needed_bytes == needed
        assert caught.value.free_bytes is not None
        assert caught.value.free_bytes <= free
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, target.device)
    del caught
    assert_same(brought(fd, target), theirs(saved, target.device))


@needs_cuda
def test_page_locked_memory_is_locked_and_freed(fd: int, target: Target) -> None:
    brought(fd, target)
    assert target.link.ring._idle[0].buffer.tensor.is_pinned()
    craftcache.set_staging_limit(1 << 20)
    try:
        brought(fd, target)
        assert target.link.ring.held_bytes <= 1 << 20
    finally:
        craftcache.set_staging_limit(DEFAULT_BYTES)


def module_of(state: dict[str, torch.Tensor], device: torch.device) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, tensor in state.items():
        module.register_parameter(name, torch.nn.Parameter(torch.empty_like(tensor, device=device)))
    return module


def state_of(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = [(3000, 2000), (2000,), (2000, 1000), (7,), (1,), (1024, 1024)]
    return {
        f"part{number}": torch.randn(*size, generator=generator).to(dtype)
        for number, size in enumerate(sizes)
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["copy_into", "adopt"])
def test_a_module_on_the_device_is_filled_and_cast_there(
    tmp_path: Path, target: Target, dtype: torch.dtype, way: str
) -> None:
    given = state_of(torch.float16)
    path = tmp_path / "given.bin"
    torch.save(given, path)
    module = module_of(state_of(dtype), target.device)
    target.synchronize()
    before = target.used_bytes()
    fd = os.open(path, os.O_RDONLY)
    index: Index = read_index(fd)
    if way == "copy_into":
        copy_into(index, fd, module, key=None, link_to=lambda _: target.link)
    else:
        state: Any = build(index, fd, device=CPU)
        adopt(module, state, link_to=lambda _: target.link)
    os.close(fd)
    for name, parameter in module.named_parameters():
        assert parameter.dtype is dtype
        assert torch.equal(parameter.detach().cpu(), given[name].to(dtype)), name
    target.synchronize()
    assert target.used_bytes() == before


@needs_cuda
def test_filling_takes_no_more_memory_than_a_buffer(tmp_path: Path, target: Target) -> None:
    path = tmp_path / "given.bin"
    torch.save(state_of(torch.float16), path)
    module = module_of(state_of(torch.float32), target.device)
    fd = os.open(path, os.O_RDONLY)
    torch.cuda.synchronize(target.device)
    torch.cuda.reset_peak_memory_stats(target.device)
    before = torch.cuda.memory_allocated(target.device)
    copy_into(read_index(fd), fd, module, key=None, link_to=lambda _: target.link)
    os.close(fd)
    grown = torch.cuda.max_memory_allocated(target.device) - before
    assert grown <= target.link.ring.buffer_bytes


def test_no_thread_is_left(fd: int, target: Target) -> None:
    brought(fd, target)
    assert not [each for each in threading.enumerate() if each.name == "craftcache-device"]
