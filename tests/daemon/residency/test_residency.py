"""Bringing files into memory: how far, how often, and what a cancelled request leaves running."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache.errors import PolicyDenied
from craftcached.residency import page_cache
from craftcached.residency.residency import MachineMemory, Residency, has_room

if TYPE_CHECKING:
    from pathlib import Path

GB = 10**9
SIZE = 4 * page_cache.WINDOW
PLENTY = MachineMemory(10**15, 10**15)


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A file of which nothing is in memory."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    found = page_cache.resident_bytes(descriptor)
    os.close(descriptor)
    if found != 0:
        pytest.skip("this file system keeps its files in memory, or the kernel does not say")
    return path


def ignore(_done: int) -> None:
    """Nobody watches."""


@given(st.integers(1, 10**13), st.integers(0, 10**13), st.integers(0, 10**13))
def test_a_tenth_of_memory_stays_available(total: int, available: int, taken: int) -> None:
    memory = MachineMemory(total, min(total, available))
    if has_room(memory, taken):
        assert memory.available - taken >= total // 10
    else:
        assert (memory.available - taken) * 10 < total


def test_the_machine_s_memory_is_read() -> None:
    memory = MachineMemory.read()
    assert 0 < memory.available <= memory.total
    assert memory.total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


async def test_a_file_is_brought_into_memory(cold: Path) -> None:
    steps: list[int] = []
    async with Residency(lambda: PLENTY) as residency:
        assert await residency.resident([cold]) == 0
        await residency.bring(cold, steps.append)
        # A kernel that reclaims what nobody has used yet may have begun to.
        assert await residency.resident([cold]) == pytest.approx(SIZE, rel=0.1)
    assert steps == [0, page_cache.WINDOW, 2 * page_cache.WINDOW, 3 * page_cache.WINDOW]


async def test_reading_stops_before_the_last_tenth_of_memory(cold: Path) -> None:
    memory = MachineMemory(10 * page_cache.WINDOW, 2 * page_cache.WINDOW)
    async with Residency(lambda: memory) as residency:
        await residency.bring(cold, ignore)
        # One window fits, and a second may have been asked of the disk already.
        found = await residency.resident([cold])
    assert found is not None
    assert page_cache.WINDOW <= found <= 3 * page_cache.WINDOW
    assert found < SIZE


async def test_a_removed_file_is_no_error_and_not_in_memory(tmp_path: Path) -> None:
    async with Residency() as residency:
        await residency.bring(tmp_path / "removed", ignore)
        assert await residency.resident([tmp_path / "removed"]) == 0


class Gate:
    """MachineMemory that holds up the reading thread until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.may_go_on = threading.Semaphore(0)
        self.asked = 0

    def __call__(self) -> MachineMemory:
        self.asked += 1
        self.reached.release()
        self.may_go_on.acquire()
        return PLENTY


async def turns() -> None:
    """Let every task go on as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_cancelling_ends_the_reading_at_the_next_window(cold: Path) -> None:
    gate = Gate()
    async with Residency(gate) as residency:
        task = asyncio.create_task(residency.bring(cold, ignore))
        await asyncio.to_thread(gate.reached.acquire)
        task.cancel()
        await turns()
        gate.may_go_on.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.asked == 1
        found = await residency.resident([cold])
    assert found is not None
    assert found < SIZE


async def test_a_request_that_waits_for_its_turn_is_cancelled_at_once(
    cold: Path, tmp_path: Path
) -> None:
    gate = Gate()
    async with Residency(gate) as residency:
        first = asyncio.create_task(residency.bring(cold, ignore))
        await asyncio.to_thread(gate.reached.acquire)
        other = tmp_path / "other"
        other.write_bytes(bytes(1000))
        second = asyncio.create_task(residency.bring(other, ignore))
        await turns()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second  # while the first still holds the thread
        assert not first.done()
        gate.may_go_on.release(4)
        await first
    assert gate.asked == 4  # nothing was read for the second


async def test_two_who_ask_at_once_share_one_reading(cold: Path) -> None:
    gate = Gate()
    async with Residency(gate) as residency:
        tasks = [asyncio.create_task(residency.bring(cold, ignore)) for _ in range(2)]
        await asyncio.to_thread(gate.reached.acquire)
        tasks[0].cancel()  # the one that started it; the other still gets all
        gate.may_go_on.release(4)
        await tasks[1]
        assert gate.asked == 4
        assert await residency.resident([cold]) == pytest.approx(SIZE, rel=0.1)
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_nothing_is_locked_into_the_last_tenth_of_memory(cold: Path) -> None:
    async with Residency(lambda: MachineMemory(10 * SIZE, SIZE)) as residency:
        with pytest.raises(PolicyDenied, match="less than a tenth"):
            await residency.lock([cold])
        assert await residency.resident([cold]) == 0
