"""A file brought onto a device is what torch.load returns, however late the device is."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from craftcache.checkpoint.tensors import build
from craftcache.device.link import DeviceLink
from craftcache.device.pieces import SMALL_BYTES
from craftcache.device.staging import StagingRing
from craftcache.errors import CraftcacheError, DeviceLost, DeviceMemoryFull
from tests.support.checkpoints import (
    assert_same,
    checkpoints,
    index_of,
    loaded,
    memory_file,
    saved,
)
from tests.support.emulated_accelerator import EmulatedAccelerator, emulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from craftcache.checkpoint.index import Index

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support")  # torch's, on sight of one

CPU = torch.device("cpu")
BUFFER_BYTES = 256 * 1024
READERS = 4


def ring_of(buffers: int) -> StagingRing:
    return StagingRing(buffers * BUFFER_BYTES, buffer_bytes=BUFFER_BYTES)


def link_of(accelerator: EmulatedAccelerator, buffers: int = 8, **options: Any) -> DeviceLink:
    return DeviceLink(accelerator, ring_of(buffers), readers=READERS, **options)


def brought(fd: int, link: DeviceLink, index: Index | None = None, **options: Any) -> Any:
    """What a load onto the emulated device returns, when the device has done all that it has."""
    built = build(index or index_of(fd), fd, device=CPU, link=link, **options)
    link.accelerator.mark().wait()
    return built


def of_all_sizes() -> dict[str, torch.Tensor]:
    """Storages around every size at which something else is done with them."""
    sizes = [0, 1, 7, 4096, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, BUFFER_BYTES - 4096]
    sizes += [BUFFER_BYTES, BUFFER_BYTES + 1, 3 * BUFFER_BYTES + 17, 100_000, 100_000, 5]
    generator = torch.Generator().manual_seed(7)
    return {
        f"{number}": torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        for number, size in enumerate(sizes)
    }


@pytest.fixture(scope="module")
def content() -> bytes:
    return saved({"best_state": of_all_sizes(), "epoch": 3})


@pytest.fixture
def fd(content: bytes) -> Iterator[int]:
    with memory_file(content) as fd:
        yield fd


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("buffers", [1, 2, 8])
def test_all_bytes_arrive_in_whatever_order_the_device_works(
    fd: int, content: bytes, seed: int, lazy: bool, buffers: int
) -> None:
    with emulated(lazy=lazy, seed=seed) as accelerator:
        link = link_of(accelerator, buffers)
        assert_same(brought(fd, link), loaded(content))
        assert link.ring.idle == accelerator.pinned <= buffers


@settings(deadline=None, max_examples=60)
@given(checkpoints(), st.booleans(), st.integers(0, 99))
def test_it_is_exact(checkpoint: object, lazy: bool, seed: int) -> None:
    content = saved(checkpoint)
    with memory_file(content) as fd, emulated(lazy=lazy, seed=seed) as accelerator:
        assert_same(brought(fd, link_of(accelerator)), loaded(content))


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
def test_however_it_is_read_it_is_the_same(
    fd: int, content: bytes, mapped: bool, direct: bool
) -> None:
    with emulated() as accelerator:
        ours = brought(fd, link_of(accelerator), mapped=mapped, direct=direct)
        assert_same(ours, loaded(content))


def test_old_containers_are_exact_too() -> None:
    content = saved(of_all_sizes(), _use_new_zipfile_serialization=False)
    with memory_file(content) as fd, emulated() as accelerator:
        assert_same(brought(fd, link_of(accelerator)), loaded(content))


def test_what_has_no_tensors_asks_nothing_of_the_device() -> None:
    with memory_file(saved({"pretrained": "facebook/encodec_32khz"})) as fd, emulated() as device:
        assert brought(fd, link_of(device)) == {"pretrained": "facebook/encodec_32khz"}
        assert not device.enqueued
        assert not device.pinned


def test_small_storages_travel_together() -> None:
    state = {f"{number}": torch.full((300,), number) for number in range(200)}
    content = saved(state)
    with memory_file(content) as fd, emulated() as accelerator:
        link = DeviceLink(accelerator, StagingRing(4 << 20, buffer_bytes=2 << 20))
        assert_same(brought(fd, link), loaded(content))
        assert accelerator.enqueued == [(1, 200)]


def test_nothing_is_on_the_device_but_the_tensors(fd: int, content: bytes) -> None:
    index = index_of(fd)
    with emulated() as accelerator:
        ours = brought(fd, link_of(accelerator), index)
        assert accelerator.used_bytes == sum(storage.nbytes for storage in index.storages)
        assert accelerator.peak_bytes <= accelerator.used_bytes + BUFFER_BYTES
        del ours
        assert not accelerator.used_bytes


def test_the_next_load_takes_the_same_buffers(fd: int) -> None:
    with emulated() as accelerator:
        link = link_of(accelerator)
        brought(fd, link)
        buffers = [idle.buffer.tensor.data_ptr() for idle in link.ring._idle]
        brought(fd, link)
        assert {idle.buffer.tensor.data_ptr() for idle in link.ring._idle} >= set(buffers)
        link.ring.close()
        assert not accelerator.pinned
        brought(fd, link)


@pytest.mark.parametrize("buffers", [1, 3])
def test_many_loads_share_few_buffers(fd: int, content: bytes, buffers: int) -> None:
    with emulated() as accelerator, ThreadPoolExecutor(6) as pool:
        link = link_of(accelerator, buffers)
        for ours in pool.map(lambda _: brought(fd, link), range(12)):
            assert_same(ours, loaded(content))
        assert accelerator.pinned <= buffers


def test_a_system_with_fewer_buffers_than_allowed_gives_what_it_has(
    fd: int, content: bytes
) -> None:
    with emulated(pinned_buffers=2) as accelerator:
        assert_same(brought(fd, link_of(accelerator, 8)), loaded(content))


def test_a_system_without_buffers_is_said(fd: int) -> None:
    with emulated(pinned_buffers=0) as accelerator:
        link = link_of(accelerator)
        with pytest.raises(CraftcacheError, match="page-locked"):
            brought(fd, link)
        assert nothing_is_left(link, accelerator)
        assert not accelerator.used_bytes


class Stop(Exception):
    """What a check raises."""


def stopping_after(count: int) -> Callable[[], None]:
    """A check that goes on ``count`` times."""
    left = threading.Semaphore(count)

    def check() -> None:
        if not left.acquire(blocking=False):
            raise Stop

    return check


def nothing_is_left(link: DeviceLink, accelerator: EmulatedAccelerator) -> bool:
    """Whether all buffers are back, no thread runs, and the device has nothing more to do."""
    accelerator.mark().wait()
    threads = [thread for thread in threading.enumerate() if thread.name == "craftcache-device"]
    return not threads and link.ring.idle == accelerator.pinned and not link.ring._taken


@pytest.mark.parametrize("count", [0, 1, 3, 6])
@pytest.mark.parametrize("buffers", [1, 8])
def test_a_cancelled_load_ends_and_leaves_nothing(fd: int, count: int, buffers: int) -> None:
    with emulated(seed=count) as accelerator:
        link = link_of(accelerator, buffers, check=stopping_after(count))
        with pytest.raises(Stop):
            brought(fd, link)
        assert nothing_is_left(link, accelerator)
        assert not accelerator.used_bytes


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("lazy", [True, False])
def test_a_file_that_ends_half_way_is_an_error(fd: int, share: float, lazy: bool) -> None:
    index = index_of(fd)
    os.ftruncate(fd, int(index.storages[-1].offset * share))
    with emulated(lazy=lazy) as accelerator:
        link = link_of(accelerator)
        with pytest.raises(EOFError, match="the file ends at byte"):
            brought(fd, link, index)
        assert nothing_is_left(link, accelerator)
        assert not accelerator.used_bytes


@pytest.mark.parametrize("count", range(0, 9, 2))
@pytest.mark.parametrize("lost_when", ["told", "waited for"])
def test_a_lost_device_is_an_error_of_ours(fd: int, count: int, lost_when: str) -> None:
    with emulated(lost_after=count, lost_when=lost_when) as accelerator:
        link = link_of(accelerator)
        with pytest.raises(DeviceLost, match="emulated failure") as caught:
            brought(fd, link)
        assert not caught.value.retryable
        del caught  # its frames have the buffer that nobody may use again
        assert nothing_is_left(link, accelerator)
        assert not accelerator.used_bytes


def needed_bytes(index: Index) -> int:
    return sum(storage.nbytes for storage in index.storages)


@pytest.mark.parametrize("lacking", [1, 100_000, 800_000])
def test_too_little_memory_is_said_in_bytes_and_may_be_tried_again(
    fd: int, content: bytes, lacking: int
) -> None:
    index = index_of(fd)
    capacity = needed_bytes(index) - lacking
    with emulated(capacity=capacity) as accelerator:
        link = link_of(accelerator)
        with pytest.raises(DeviceMemoryFull) as caught:
            build(index, fd, device=CPU, link=link, source="org/model")
        error = caught.value
        assert (error.needed_bytes, error.free_bytes) == (needed_bytes(index), capacity)
        assert str(needed_bytes(index)) in str(error)
        assert str(capacity) in str(error)
        assert error.retryable
        assert error.source == "org/model"
        assert not accelerator.used_bytes  # though the error is still there
        assert accelerator.gave_back
        assert nothing_is_left(link, accelerator)
        accelerator.capacity = None
        assert_same(brought(fd, link, index), loaded(content))


def test_what_fits_exactly_fits(fd: int, content: bytes) -> None:
    index = index_of(fd)
    with emulated(capacity=needed_bytes(index)) as accelerator:
        assert_same(brought(fd, link_of(accelerator), index), loaded(content))


def test_a_process_without_threads_loads_in_its_own(
    fd: int, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with emulated() as accelerator:

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert_same(brought(fd, link_of(accelerator)), loaded(content))
