"""torch's devices behind the protocol, as far as a machine without one can tell.

A stand-in takes the place of torch.cuda: it does at once what a device does later, and fails as
torch does. What the names do on a real device, tests/gpu shows.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from craftcache.checkpoint.filling import copy_into
from craftcache.checkpoint.tensors import build
from craftcache.device.accelerator import DeviceWork, NoDeviceMemory, Upload
from craftcache.device.link import DeviceLink, find_link
from craftcache.device.torch_accelerator import (
    TorchAccelerator,
    copies_rightly,
    find_accelerator,
)
from craftcache.errors import DeviceLost, ResourceLimit
from tests.client.device.test_device_copies import assert_filled, model_of, weights
from tests.client.device.test_onto_device import of_all_sizes, ring_of
from tests.support.checkpoints import assert_same, index_of, loaded, memory_file, saved

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU = torch.device("cpu")


class StandIn:
    """The names of torch.cuda that are used, for a device that is the CPU.

    Args:
        failure: What an event raises that is waited for.
    """

    def __init__(self, failure: Exception | None = None) -> None:
        self.calls: list[str] = []
        self.failure = failure

    def Stream(self, *, device: torch.device) -> StandIn:  # noqa: N802  # torch's name
        assert device == torch.device("cpu", 0)
        self.calls.append("Stream")
        return self

    def Event(self, *, blocking: bool) -> StandIn:  # noqa: N802  # torch's name
        assert blocking
        return self

    def record(self, stream: StandIn) -> None:
        assert stream is self
        self.calls.append("record")

    def synchronize(self) -> None:
        self.calls.append("synchronize")
        if self.failure is not None:
            raise self.failure

    def query(self) -> bool:
        return True

    def wait_event(self, event: StandIn) -> None:
        assert event is self
        self.calls.append("wait_event")

    @contextlib.contextmanager
    def stream(self, stream: StandIn) -> Iterator[None]:
        self.calls.append("stream")
        yield

    @contextlib.contextmanager
    def device(self, index: int) -> Iterator[None]:
        assert index == 0
        yield

    def current_stream(self, device: torch.device) -> StandIn:
        return self

    def current_device(self) -> int:
        return 0

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 3, 4

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")


def unaligned(nbytes: int) -> torch.Tensor:
    """Memory that does not begin at a page."""
    whole = torch.empty(nbytes + 8192, dtype=torch.uint8)
    start = -whole.data_ptr() % 4096 + 64
    return whole[start : start + nbytes]


def accelerator_of(api: StandIn, **options: Any) -> TorchAccelerator:
    return TorchAccelerator(CPU, api, **{"lock_memory": unaligned, **options})


def test_a_file_arrives_and_a_module_is_filled() -> None:
    content, state, module = saved(of_all_sizes()), weights(), model_of()
    api = StandIn()
    link = DeviceLink(accelerator_of(api), ring_of(8), readers=4)
    with memory_file(content) as fd:
        assert_same(build(index_of(fd), fd, device=CPU, link=link), loaded(content))
    with memory_file(saved(state)) as fd:
        copy_into(index_of(fd), fd, module, key=None, link_to=lambda _: link)
    assert_filled(module, state)
    assert api.calls.count("stream") < api.calls.count("record")
    assert {"wait_event", "synchronize"} <= set(api.calls)


@pytest.mark.parametrize("buffers", [1, 8])
def test_without_threads_a_device_that_is_done_at_once_holds_nothing_up(
    buffers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    content = saved(of_all_sizes())
    link = DeviceLink(accelerator_of(StandIn()), ring_of(buffers))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with memory_file(content) as fd:
        assert_same(build(index_of(fd), fd, device=CPU, link=link), loaded(content))


def test_work_waits_for_the_mark_before_its_first_copy_and_is_marked_after_its_last() -> None:
    api = StandIn()
    accelerator = accelerator_of(api)
    stream, after = accelerator.new_stream(), accelerator.mark()
    buffer = accelerator.pin(4096)
    buffer.view[8:12] = bytes(range(4))
    middle, target = torch.zeros(4, dtype=torch.uint8), torch.zeros(4)
    api.calls.clear()
    work = DeviceWork(after, buffer, [Upload(middle, 8, 4)], [(target, middle)])
    stream.enqueue(work).wait()
    assert api.calls == ["wait_event", "stream", "record", "synchronize"]
    assert torch.equal(target, torch.arange(4.0))


def test_page_locked_memory_begins_at_a_page_whatever_torch_gives() -> None:
    buffer = accelerator_of(StandIn()).pin(8192)
    assert buffer.tensor.data_ptr() % 4096 == 0
    assert len(buffer.view) == buffer.tensor.numel() == 8192
    buffer.view[5:7] = b"ab"
    assert buffer.tensor[5:7].tolist() == [97, 98]
    buffer.return_memory()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device to lock memory for")
def test_where_torch_locks_no_memory_it_is_said() -> None:
    with pytest.raises(ResourceLimit, match="page-locked"):
        TorchAccelerator(CPU, StandIn()).pin(4096)


def test_what_the_device_says_is_an_error_of_ours() -> None:
    accelerator = accelerator_of(StandIn(RuntimeError("CUDA error: unspecified launch failure\nx")))
    with pytest.raises(DeviceLost, match=r"cpu:0 failed \(CUDA error: unspecified launch failure"):
        accelerator.mark().wait()


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
    ],
)
def test_no_room_is_not_a_lost_device(error: Exception) -> None:
    accelerator = accelerator_of(StandIn(error))
    with pytest.raises(NoDeviceMemory, match="out of memory"):
        accelerator.mark().wait()
    with pytest.raises((NoDeviceMemory, DeviceLost)):
        accelerator.allocate(1 << 60)


def test_memory_is_told_and_given_back() -> None:
    api = StandIn()
    accelerator = accelerator_of(api)
    assert accelerator.free_bytes() == 3
    accelerator.give_back()
    assert api.calls == ["empty_cache"]


def test_memory_that_cannot_be_told_is_none() -> None:
    class Silent(StandIn):
        def mem_get_info(self, device: torch.device) -> tuple[int, int]:
            raise NotImplementedError

    assert accelerator_of(Silent()).free_bytes() is None


class Deaf(StandIn):
    """Does nothing on its streams."""

    @contextlib.contextmanager
    def stream(self, stream: StandIn) -> Iterator[None]:
        with _Nothing():
            yield


class _Nothing(TorchFunctionMode):
    def __torch_function__(self, *_: Any) -> None:
        return None


def test_a_device_is_asked_for_a_copy_before_it_is_relied_on() -> None:
    assert copies_rightly(accelerator_of(StandIn()))
    assert not copies_rightly(accelerator_of(Deaf()))


@pytest.mark.parametrize("kind", ["cpu", "meta"])
def test_what_has_no_streams_gets_plain_copies(kind: str) -> None:
    assert find_accelerator(torch.device(kind)) is None
    assert find_link(torch.device(kind)) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without one")
@pytest.mark.parametrize("kind", ["mps", "xpu", "xla", "privateuseone"])
def test_a_device_that_is_not_there_gets_none(kind: str) -> None:
    assert find_link(torch.device(kind)) is None
