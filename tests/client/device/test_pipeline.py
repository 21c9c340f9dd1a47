"""The threads of a load end whatever happens, and wait for nobody who waits for them."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import torch

from craftcache.device.copy_job import CopyJob, Part
from craftcache.device.pipeline import Pipeline
from tests.client.device.test_onto_device import Stop, ring_of
from tests.support.emulated_accelerator import EmulatedAccelerator, emulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from craftcache.device.accelerator import PinnedBuffer

SECONDS = 60.0
"""How long a thread may take that is to end; it fails then, and never passes by waiting."""


@pytest.fixture
def device() -> Iterator[EmulatedAccelerator]:
    with emulated() as accelerator:
        yield accelerator


class Filling:
    """Reads as a function does: fills the buffer with what it returns, or fails."""

    def __init__(self, value: Callable[[], int]) -> None:
        self._value = value

    def fill(self, buffer: PinnedBuffer) -> None:
        buffer.view[:8] = bytes([self._value()]) * 8


def job(device: EmulatedAccelerator, target: torch.Tensor, value: Callable[[], int]) -> CopyJob:
    part = Part(target, torch.uint8, 0, 8)
    return CopyJob([Filling(value)], [part], device.mark(), 8)


def fail() -> int:
    raise Stop


def new_target(device: EmulatedAccelerator) -> torch.Tensor:
    return device.allocate(8)


def targets(device: EmulatedAccelerator, count: int) -> list[torch.Tensor]:
    return [new_target(device) for _ in range(count)]


def test_draining_waits_for_all_and_more_may_follow(device: EmulatedAccelerator) -> None:
    with Pipeline(device, ring_of(2), readers=3) as pipeline:
        for value in (1, 2):
            placed = targets(device, 20)
            for target in placed:
                pipeline.submit(job(device, target, lambda value=value: value))  # type: ignore[misc]
            pipeline.drain()
            assert all(target.eq(value).all() for target in placed)


def test_a_thread_that_waits_for_jobs_has_no_buffer(device: EmulatedAccelerator) -> None:
    ring = ring_of(1)
    with Pipeline(device, ring, readers=2) as first, Pipeline(device, ring, readers=2) as second:
        for pipeline in (first, second, first):  # the other has ended nothing yet
            target = new_target(device)
            pipeline.submit(job(device, target, lambda: 7))
            pipeline.drain()
            assert target.eq(7).all()


@pytest.mark.parametrize("readers", [1, 4])
def test_the_first_failure_is_told_and_what_is_queued_is_dropped(
    device: EmulatedAccelerator, readers: int
) -> None:
    begun: list[int] = []
    ring = ring_of(8)

    def count() -> int:
        begun.append(1)
        return 1

    with pytest.raises(Stop), Pipeline(device, ring, readers=readers) as pipeline:  # noqa: PT012
        for value in (count, fail, *[count] * 200):
            pipeline.submit(job(device, new_target(device), value))
        pipeline.drain()
    assert len(begun) < 200
    assert ring.idle == device.pinned


def test_a_failure_ends_the_wait_for_a_buffer(device: EmulatedAccelerator) -> None:
    ring = ring_of(1)
    taken = ring.take_nowait(device)
    assert taken is not None
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Stop

    ended = threading.Event()

    def load() -> None:
        with pytest.raises(Stop), Pipeline(device, ring, check=check, readers=2) as pipeline:
            pipeline.submit(job(device, new_target(device), lambda: 1))
        ended.set()

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    stop.set()
    assert ended.wait(SECONDS)
    ring.give_back(taken)


def test_nothing_runs_after_the_context_was_left_by_an_error(device: EmulatedAccelerator) -> None:
    with pytest.raises(ValueError, match="ours"), Pipeline(device, ring_of(8)) as pipeline:  # noqa: PT012
        for target in targets(device, 30):
            pipeline.submit(job(device, target, lambda: 1))
        raise ValueError("ours")
    assert not [each for each in threading.enumerate() if each.name == "craftcache-device"]


INTERRUPTED = """
import signal, sys, threading
from craftcache.device.pipeline import Pipeline
from tests.client.device.test_onto_device import ring_of
from tests.client.device.test_pipeline import job, targets
from tests.support.emulated_accelerator import emulated

reading, may_go_on = threading.Event(), threading.Event()

def hang():
    reading.set()
    may_go_on.wait()
    return 1

def interrupt():
    reading.wait()
    signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(0.5, may_go_on.set).start()  # the disk answers at last, after the interrupt
with emulated() as device:
    ring = ring_of(4)
    try:
        with Pipeline(device, ring, readers=2) as pipeline:
            for target in targets(device, 5):
                pipeline.submit(job(device, target, hang))
            threading.Thread(target=interrupt).start()
            pipeline.drain()
    except KeyboardInterrupt:
        print("interrupted", ring.idle == device.pinned, flush=True)
"""


FORKED = """
import os, threading, warnings
import torch
from craftcache.device.link import DeviceLink
from tests.client.device.test_onto_device import brought, of_all_sizes, ring_of
from tests.support.checkpoints import assert_same, loaded, memory_file, saved
from tests.support.emulated_accelerator import emulated

warnings.simplefilter("ignore")  # newer Pythons warn of what is tested here
reading, may_go_on = threading.Event(), threading.Event()
content = saved(of_all_sizes())

def hold_up():
    reading.set()
    may_go_on.wait()

ring = ring_of(3)
with memory_file(content) as fd, emulated() as device:
    held = DeviceLink(device, ring, check=hold_up, readers=2)
    results = []
    loading = threading.Thread(target=lambda: results.append(brought(fd, held)))
    loading.start()
    reading.wait()
    child = os.fork()
    if not child:
        with emulated() as own:
            assert_same(brought(fd, DeviceLink(own, ring, readers=2)), loaded(content))
        print("the child has it", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    may_go_on.set()
    loading.join()
    assert_same(results[0], loaded(content))
    print("the parent has it", ring.idle == device.pinned, flush=True)
"""


def test_a_child_that_was_forked_while_a_load_went_on_loads_and_so_does_its_parent() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    said = "the child has it\nthe parent has it True\n"
    assert (ran.stdout, ran.stderr) == (said, "")


def test_an_interrupt_ends_a_load_when_its_reads_have_ended() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("interrupted True\n", "")


@pytest.mark.parametrize("where", ["entered", "new_stream"])
def test_a_device_that_cannot_be_used_at_all_is_an_error(
    device: EmulatedAccelerator, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise Stop

    monkeypatch.setattr(device, where, refuse)
    with pytest.raises(Stop), Pipeline(device, ring_of(4), readers=3) as pipeline:  # noqa: PT012
        for target in targets(device, 10):
            pipeline.submit(job(device, target, lambda: 1))
