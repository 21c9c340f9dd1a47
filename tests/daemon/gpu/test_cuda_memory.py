"""The memory of a CUDA device, on a driver that is made of memory files."""

from __future__ import annotations

import hashlib
import os
import random
from typing import TYPE_CHECKING

import pytest
import torch

from craftcache.device.accelerator import NoDeviceMemory
from craftcache.device.cuda_driver import CudaDriver, CudaFailed, NoCudaDriver
from craftcache.device.cuda_sharing import CudaMapper
from craftcache.device.sharing import Lease, NotShared
from craftcache.errors import ResourceLimit
from craftcached.gpu.cuda_memory import PIECE_BYTES, CudaMemory
from tests.support.checkpoints import memory_file
from tests.support.gpu.fake_driver import GRANULARITY, FakeDriver, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

UUID = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"


@pytest.fixture
def api() -> Iterator[FakeDriver]:
    """The driver; nothing that was taken from it may be left at the end."""
    api = FakeDriver()
    yield api
    api.failing.clear()
    left = (api.handles, api.maps, api.reserved, api.pinned, api.streams)
    assert not any(left), left
    assert api.current == 0


def test_the_device_says_what_it_is(api: FakeDriver) -> None:
    memory = CudaMemory(CudaDriver(api))
    assert (memory.uuid, memory.name) == (UUID, "Fake GPU")
    assert memory.total_bytes == api.total
    assert memory.free_bytes() == api.total // 2
    assert memory.block_bytes(1) == GRANULARITY
    assert memory.block_bytes(GRANULARITY) == GRANULARITY


@pytest.mark.parametrize("size", [1, PIECE_BYTES, 5 * PIECE_BYTES + 12_345])
def test_a_file_comes_into_a_block_and_back_byte_for_byte(api: FakeDriver, size: int) -> None:
    content = random.Random(size).randbytes(size)
    block = CudaMemory(CudaDriver(api)).create(size)
    with memory_file(content) as fd:
        block.fill(fd, size)
    assert block.sha256(size) == hashlib.sha256(content).hexdigest()
    exported = block.export()
    block.close()
    assert os.pread(exported, block.nbytes, 0) == content.ljust(block.nbytes, b"\0")
    assert not os.get_inheritable(exported)
    os.close(exported)


def test_a_file_that_is_too_short_is_no_file(api: FakeDriver) -> None:
    block = CudaMemory(CudaDriver(api)).create(100)
    with memory_file(b"short") as fd, pytest.raises(EOFError):
        block.fill(fd, 100)
    block.close()


def test_too_much_is_no_failure_of_the_device(api: FakeDriver) -> None:
    with pytest.raises(NoDeviceMemory):
        CudaMemory(CudaDriver(api)).create(api.total + 1)


@pytest.mark.parametrize(
    "call", ["cuMemMap", "cuMemSetAccess", "cuMemHostAlloc", "cuMemcpyHtoDAsync", "cuStreamCreate"]
)
def test_a_device_that_fails_says_so_and_leaves_nothing(api: FakeDriver, call: str) -> None:
    block = CudaMemory(CudaDriver(api)).create(100)
    api.failing[call] = Result.CUDA_ERROR_ILLEGAL_ADDRESS
    with memory_file(bytes(100)) as fd, pytest.raises(CudaFailed, match="ILLEGAL_ADDRESS"):
        block.fill(fd, 100)
    block.close()


def test_a_system_without_page_locked_memory_is_no_failure_of_the_device(api: FakeDriver) -> None:
    block = CudaMemory(CudaDriver(api)).create(100)
    api.failing["cuMemHostAlloc"] = Result.CUDA_ERROR_OUT_OF_MEMORY
    with memory_file(bytes(100)) as fd, pytest.raises(ResourceLimit, match="page-locked"):
        block.fill(fd, 100)
    block.close()


def test_a_device_without_such_memory_is_none(api: FakeDriver) -> None:
    api.attributes["fd"] = 0
    with pytest.raises(NoCudaDriver, match="no file descriptors"):
        CudaMemory(CudaDriver(api))


def test_a_worker_maps_it_for_reading_and_lets_go_of_all(api: FakeDriver) -> None:
    driver = CudaDriver(api)
    block = CudaMemory(driver).create(100)
    with memory_file(b"x" * 100) as fd:
        block.fill(fd, 100)
    ours, theirs = os.pipe()
    exported = block.export()
    mapper = CudaMapper(driver, 0, torch.device("cuda", 0))
    spans = mapper.map(exported, block.nbytes, Lease(theirs))
    os.close(exported)
    block.close()  # with its handle, here and in the service alike
    [(address, mapped)] = api.maps.items()
    assert api.access[address] == "r"
    assert mapped[:100] == b"x" * 100
    assert not api.handles, "the map alone keeps the memory"
    del mapped, spans
    assert not api.maps
    assert os.read(ours, 1) == b"", "the lease is given back"
    os.close(ours)


def test_torch_makes_tensors_in_the_map(api: FakeDriver) -> None:
    """On the CPU, by the same interface: torch believes a device that has a number."""
    driver = CudaDriver(api)
    block = CudaMemory(driver).create(100)
    with memory_file(bytes(range(100))) as fd:
        block.fill(fd, 100)
    ours, theirs = os.pipe()
    exported = block.export()
    spans = CudaMapper(driver, 0, torch.device("cpu", 0)).map(exported, block.nbytes, Lease(theirs))
    os.close(exported)
    block.close()
    first, second = spans.span(3, 7), spans.span(64, 4)
    del spans
    assert (first.tolist(), second.tolist()) == ([*range(3, 10)], [*range(64, 68)])
    assert first.untyped_storage().nbytes() == 7
    assert second.data_ptr() - first.data_ptr() == 61
    storage = second.untyped_storage()
    del first, second
    assert api.maps, "a storage alone keeps it"
    del storage
    assert not api.maps
    assert os.read(ours, 1) == b""
    os.close(ours)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch can use CUDA")
def test_a_torch_that_takes_no_such_memory_is_a_reason_to_copy(api: FakeDriver) -> None:
    driver = CudaDriver(api)
    block = CudaMemory(driver).create(100)
    ours, theirs = os.pipe()
    exported = block.export()
    spans = CudaMapper(driver, 0, torch.device("cpu")).map(exported, block.nbytes, Lease(theirs))
    with pytest.raises(NotShared, match="torch does not take the memory"):
        spans.span(0, 100)
    assert not api.maps, "though torch keeps it"
    assert os.read(ours, 1) == b""
    for descriptor in (ours, exported):
        os.close(descriptor)
    block.close()


def test_a_map_that_fails_gives_the_lease_back(api: FakeDriver) -> None:
    driver = CudaDriver(api)
    block = CudaMemory(driver).create(100)
    api.failing["cuMemSetAccess"] = Result.CUDA_ERROR_INVALID_VALUE
    ours, theirs = os.pipe()
    exported = block.export()
    with pytest.raises(NotShared, match="INVALID_VALUE"):
        CudaMapper(driver, 0, torch.device("cuda", 0)).map(exported, 100, Lease(theirs))
    assert os.read(ours, 1) == b""
    for descriptor in (ours, exported):
        os.close(descriptor)
    block.close()


def test_a_context_that_is_lost_still_gives_the_lease_back(api: FakeDriver) -> None:
    driver = CudaDriver(api)
    block = CudaMemory(driver).create(100)
    ours, theirs = os.pipe()
    exported = block.export()
    mapper = CudaMapper(driver, 0, torch.device("cuda", 0))
    spans = mapper.map(exported, block.nbytes, Lease(theirs))
    api.failing["cuCtxSynchronize"] = Result.CUDA_ERROR_ILLEGAL_ADDRESS
    del spans
    assert os.read(ours, 1) == b""
    assert api.maps, "nothing more is asked of the device"
    for address in list(api.maps):
        api.cuMemUnmap(address, block.nbytes)
        api.cuMemAddressFree(address, block.nbytes)
    for descriptor in (ours, exported):
        os.close(descriptor)
    block.close()


def test_a_forked_child_leaves_the_map_and_the_lease_to_its_parent(api: FakeDriver) -> None:
    driver = CudaDriver(api)
    block = CudaMemory(driver).create(100)
    ours, theirs = os.pipe()
    exported = block.export()
    mapper = CudaMapper(driver, 0, torch.device("cuda", 0))
    spans = mapper.map(exported, block.nbytes, Lease(theirs))
    if (child := os.fork()) == 0:
        is_closed = 1
        try:
            os.fstat(theirs)
        except OSError:
            is_closed = 0
        del spans
        os._exit(is_closed + 2 * (len(api.maps) != 1))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert os.fstat(theirs), "the parent has it still"
    del spans
    assert os.read(ours, 1) == b""
    for descriptor in (ours, exported):
        os.close(descriptor)
    block.close()
