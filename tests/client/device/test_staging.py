"""The ring of page-locked buffers: bounded, kept, given back, and left alone by children."""

from __future__ import annotations

import os
import threading
import traceback
from typing import TYPE_CHECKING

import pytest

import craftcache
from craftcache import Client
from craftcache.device.staging import DEFAULT_BYTES, LEAST_BYTES, StagingRing, process_ring
from craftcache.errors import ResourceLimit
from tests.support.emulated_accelerator import EmulatedAccelerator, emulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from craftcache.device.accelerator import PinnedBuffer

BUFFER_BYTES = LEAST_BYTES


def always() -> bool:
    return True


@pytest.fixture
def device() -> Iterator[EmulatedAccelerator]:
    with emulated() as accelerator:
        yield accelerator


@pytest.fixture
def ring() -> StagingRing:
    return StagingRing(3 * BUFFER_BYTES, buffer_bytes=BUFFER_BYTES)


def take(ring: StagingRing, device: EmulatedAccelerator) -> PinnedBuffer:
    buffer = ring.take_nowait(device)
    assert buffer is not None
    return buffer


def test_buffers_are_made_when_they_are_needed_and_kept(
    ring: StagingRing, device: EmulatedAccelerator
) -> None:
    assert not ring.held_bytes
    first = take(ring, device)
    assert ring.held_bytes == len(first.view) == BUFFER_BYTES
    ring.give_back(first)
    assert take(ring, device) is first
    assert ring.held_bytes == BUFFER_BYTES


def test_there_are_no_more_than_allowed(ring: StagingRing, device: EmulatedAccelerator) -> None:
    buffers = [take(ring, device) for _ in range(3)]
    assert ring.take_nowait(device) is None
    assert device.pinned == 3
    ring.give_back(buffers.pop())
    assert ring.take_nowait(device) is not None


def test_who_waits_gets_what_another_gives_back(
    ring: StagingRing, device: EmulatedAccelerator
) -> None:
    buffers = [take(ring, device) for _ in range(3)]
    got: list[PinnedBuffer | None] = []
    waiter = threading.Thread(target=lambda: got.append(ring.take(device, always)))
    waiter.start()
    ring.give_back(buffers[1])
    waiter.join(60)
    assert got == [buffers[1]]


def test_who_waits_may_be_told_to_stop(ring: StagingRing, device: EmulatedAccelerator) -> None:
    for _ in range(3):
        take(ring, device)
    asked = iter([True, True, False])
    assert ring.take(device, lambda: next(asked)) is None


def test_closing_frees_what_is_idle_now_and_the_rest_when_it_comes_back(
    ring: StagingRing, device: EmulatedAccelerator
) -> None:
    idle, used = take(ring, device), take(ring, device)
    ring.give_back(idle)
    del idle
    ring.close()
    assert device.pinned == 1
    assert ring.held_bytes == BUFFER_BYTES  # in use, it counts
    ring.give_back(used)
    del used
    assert not ring.held_bytes
    assert not device.pinned
    take(ring, device)


def test_a_buffer_that_a_device_may_still_read_is_not_used_again(
    ring: StagingRing, device: EmulatedAccelerator
) -> None:
    ring.give_back(take(ring, device), clean=False)
    assert not ring.idle
    assert not ring.held_bytes
    assert not device.pinned


def test_a_lower_limit_is_kept_as_buffers_come_back(
    ring: StagingRing, device: EmulatedAccelerator
) -> None:
    buffers = [take(ring, device) for _ in range(3)]
    ring.set_limit(BUFFER_BYTES)
    while buffers:
        ring.give_back(buffers.pop())
    assert ring.held_bytes == device.pinned * BUFFER_BYTES == BUFFER_BYTES


def test_a_limit_too_low_for_a_buffer_is_refused(ring: StagingRing) -> None:
    with pytest.raises(ValueError, match="at least"):
        ring.set_limit(LEAST_BYTES - 1)
    assert ring.limit == 3


def test_buffers_of_another_kind_of_device_make_way(
    ring: StagingRing, device: EmulatedAccelerator
) -> None:
    for buffer in [take(ring, device) for _ in range(3)]:
        ring.give_back(buffer)
    del buffer
    with emulated() as other:
        other.kind = "another"
        buffers = [take(ring, other) for _ in range(3)]
        assert (device.pinned, other.pinned) == (0, 3)
        assert ring.take_nowait(other) is None
    assert len(buffers) == 3


def test_where_the_system_gives_less_it_makes_do(ring: StagingRing) -> None:
    with emulated(pinned_buffers=1) as device:
        first = take(ring, device)
        assert ring.take_nowait(device) is None
        ring.give_back(first)
        assert take(ring, device) is first


def test_where_the_system_gives_none_it_says_so(ring: StagingRing) -> None:
    with emulated(pinned_buffers=0) as device:
        with pytest.raises(ResourceLimit, match="page-locked"):
            ring.take_nowait(device)
        device.pinned_buffers = None
        take(ring, device)


def in_a_child(do: Callable[[], object]) -> str:
    """What went wrong when a forked child did it; empty if nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            do()
        except BaseException:  # noqa: BLE001  # the parent tells
            os.write(writing, traceback.format_exc().encode())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def test_a_forked_child_makes_its_own_and_leaves_its_parent_s_alone(
    ring: StagingRing, device: EmulatedAccelerator
) -> None:
    idle, used = take(ring, device), take(ring, device)
    ring.give_back(idle)
    idle.view[:1] = used.view[:1] = b"p"

    def use() -> None:
        own = [take(ring, device) for _ in range(3)]
        assert idle not in own
        for buffer in own:
            buffer.view[:1] = b"c"
        ring.give_back(used)  # what was under way in the parent, unwound here
        ring.close()
        assert ring.held_bytes == 3 * BUFFER_BYTES

    assert in_a_child(use) == ""
    assert bytes(idle.view[:1]) == bytes(used.view[:1]) == b"p"
    assert ring.idle == 1


def test_a_child_may_take_though_a_thread_of_its_parent_held_the_lock(
    ring: StagingRing, device: EmulatedAccelerator
) -> None:
    with ring._changed:  # as it is where another thread is inside while this one forks
        assert in_a_child(lambda: take(ring, device)) == ""


def test_the_ring_of_the_process_is_set_and_closed_by_the_package() -> None:
    try:
        craftcache.set_staging_limit(LEAST_BYTES)
        assert process_ring.buffer_bytes == LEAST_BYTES
        with emulated() as device:
            process_ring.give_back(take(process_ring, device))
            assert process_ring.held_bytes == LEAST_BYTES
            with Client():
                pass
            assert not device.pinned
            assert not process_ring.held_bytes
    finally:
        craftcache.set_staging_limit(DEFAULT_BYTES)
