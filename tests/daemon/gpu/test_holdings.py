"""What is in a GPU's memory, who has it, and what goes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.opened import FileInfo, OpenFile
from craftcache.errors import BudgetExceeded, CraftcacheError, DeviceMemoryFull
from craftcached.gpu.holdings import Holdings, Lent
from tests.support.gpu.memfd import PAGE, UUID, MemfdMemory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from craftcache.wire import GpuReport

SECONDS = 30.0
"""How long a test waits for what must come."""

WHOSE = 1000


class Workers:
    """Files, and the leases of them that are out."""

    def __init__(self, directory: Path, holdings: Holdings) -> None:
        self._directory = directory
        self._holdings = holdings
        self._lent: list[Lent] = []

    async def lend(self, name: str, size: int = PAGE, uid: int = WHOSE) -> Lent:
        content = name.encode() * size
        path = self._directory / name
        path.write_bytes(content[:size])
        sha256 = hashlib.sha256(content[:size]).hexdigest()
        file = OpenFile(FileInfo(name, size, "test", sha256), os.open(path, os.O_RDONLY))
        lent = await self._holdings.lend(f"org/{name}", file, sha256, uid, lambda _: None)
        self._lent.append(lent)
        return lent

    def give_back(self, lent: Lent) -> None:
        self._lent.remove(lent)
        os.close(lent.descriptor)
        os.close(lent.lease)

    def close(self) -> None:
        for lent in list(self._lent):
            self.give_back(lent)

    async def names(self) -> dict[str, int]:
        """The files that are there, with their leases."""
        report = await self.report()
        return {model.filename: model.leases for model in report.models}

    async def report(self) -> GpuReport:
        return await self._holdings.report()


def block_of(lent: Lent) -> int:
    return os.fstat(lent.descriptor).st_ino


@contextlib.asynccontextmanager
async def holding(
    directory: Path,
    memory: MemfdMemory,
    *,
    max_bytes: int = 1 << 30,
    ttl: float = 600.0,
    max_leases_per_uid: int = 4096,
) -> AsyncIterator[tuple[Holdings, Workers]]:
    async with Holdings(
        memory, max_bytes=max_bytes, ttl=ttl, max_leases_per_uid=max_leases_per_uid
    ) as holdings:
        workers = Workers(directory, holdings)
        try:
            yield holdings, workers
        finally:
            workers.close()


async def wait_for(event: object) -> None:
    assert await asyncio.to_thread(event.wait, SECONDS)  # type: ignore[attr-defined]


@pytest.fixture
def memory() -> Iterator[MemfdMemory]:
    memory = MemfdMemory()
    yield memory
    assert not memory.blocks, "the end of the service leaves nothing"


async def test_all_workers_get_the_same_block(tmp_path: Path, memory: MemfdMemory) -> None:
    async with holding(tmp_path, memory) as (holdings, workers):
        lent = await asyncio.gather(*(workers.lend("a", 3 * PAGE - 1) for _ in range(8)))
        assert len(set(map(block_of, lent))) == memory.fills == len(memory.blocks) == 1
        assert {each.nbytes for each in lent} == {3 * PAGE} == {holdings.used_bytes}
        assert os.pread(lent[3].descriptor, 3 * PAGE, 0) == b"a" * (3 * PAGE - 1) + b"\0"
        assert await workers.names() == {"a": 8}


async def test_a_lease_that_is_given_back_ends_no_other(
    tmp_path: Path, memory: MemfdMemory
) -> None:
    async with holding(tmp_path, memory, ttl=0.0) as (_, workers):
        first, second = [await workers.lend("a") for _ in range(2)]
        workers.give_back(first)
        while await workers.names() != {"a": 1}:
            pass
        assert len(memory.blocks) == 1
        workers.give_back(second)
        await wait_for(memory.has_closed)
        assert await workers.names() == {}


async def test_what_nobody_has_stays_for_a_time(tmp_path: Path, memory: MemfdMemory) -> None:
    async with holding(tmp_path, memory) as (_, workers):
        block = block_of(first := await workers.lend("a"))
        workers.give_back(first)
        while await workers.names() != {"a": 0}:
            pass
        [model] = (await workers.report()).models
        assert model.idle_seconds is not None
        assert block_of(await workers.lend("a")) == block
        [model] = (await workers.report()).models
        assert model.idle_seconds is None
        assert memory.fills == 1


async def test_a_time_to_live_that_ran_while_it_was_lent_again_takes_nothing(
    tmp_path: Path, memory: MemfdMemory
) -> None:
    async with holding(tmp_path, memory) as (holdings, workers):
        await workers.lend("a")
        [held] = holdings._held.values()
        holdings._expire(held)  # as a timer that had run out at this very moment
        await asyncio.gather(*holdings._expiring)
        assert await workers.names() == {"a": 1}


async def test_room_is_made_by_what_nobody_has_and_was_used_longest_ago(
    tmp_path: Path, memory: MemfdMemory
) -> None:
    async with holding(tmp_path, memory, max_bytes=3 * PAGE) as (_, workers):
        a, b, c = [await workers.lend(name) for name in "abc"]
        for lent, left in ((b, {"a": 1, "b": 0, "c": 1}), (a, {"a": 0, "b": 0, "c": 1})):
            workers.give_back(lent)
            while await workers.names() != left:
                pass
        await workers.lend("d")
        assert await workers.names() == {"a": 0, "c": 1, "d": 1}
        await workers.lend("e")
        with pytest.raises(DeviceMemoryFull, match="gpu_max_bytes") as failed:
            await workers.lend("f")
        assert (failed.value.needed_bytes, failed.value.free_bytes) == (PAGE, 0)
        assert failed.value.retryable
        assert await workers.names() == {"c": 1, "d": 1, "e": 1}
        assert os.pread(c.descriptor, 1, 0) == b"c"


async def test_what_can_never_fit_is_not_worth_a_retry_and_evicts_nothing_in_use(
    tmp_path: Path, memory: MemfdMemory
) -> None:
    async with holding(tmp_path, memory, max_bytes=2 * PAGE) as (holdings, workers):
        await workers.lend("a")
        with pytest.raises(DeviceMemoryFull) as failed:
            await workers.lend("b", 3 * PAGE)
        assert (failed.value.needed_bytes, failed.value.free_bytes) == (3 * PAGE, PAGE)
        assert not failed.value.retryable
        assert holdings.used_bytes == PAGE


async def test_a_card_that_others_fill_gives_what_it_can(tmp_path: Path) -> None:
    memory = MemfdMemory(total_bytes=2 * PAGE)
    async with holding(tmp_path, memory) as (_, workers):
        lent = [await workers.lend(name) for name in "ab"]
        with pytest.raises(DeviceMemoryFull, match="other processes") as failed:
            await workers.lend("c")
        assert (failed.value.needed_bytes, failed.value.free_bytes) == (PAGE, 0)
        workers.give_back(lent[0])
        while await workers.names() != {"a": 0, "b": 1}:
            pass
        await workers.lend("c")
        assert await workers.names() == {"b": 1, "c": 1}


async def test_bytes_that_turned_wrong_are_found_and_made_anew(
    tmp_path: Path, memory: MemfdMemory
) -> None:
    async with holding(tmp_path, memory) as (holdings, workers):
        good, bad = [await workers.lend(name, 100) for name in "gb"]
        assert [each.outcome for each in await holdings.verify()] == ["right", "right"]
        os.pwrite(bad.descriptor, b"x", 99)
        compared = {each.filename: each for each in await holdings.verify()}
        assert {name: each.outcome for name, each in compared.items()} == {
            "g": "right",
            "b": "wrong",
        }
        assert compared["b"].uuid == UUID
        assert compared["b"].sha256 == hashlib.sha256(b"b" * 100).hexdigest()
        anew = await workers.lend("b", 100)
        assert block_of(anew) != block_of(bad)
        assert os.pread(anew.descriptor, 100, 0) == b"b" * 100
        workers.give_back(bad)  # a lease of what was given up ends nothing else
        assert await workers.names() == {"g": 1, "b": 1}
        assert os.pread(good.descriptor, 1, 0) == b"g"


async def test_a_copy_goes_on_for_those_who_still_wait(tmp_path: Path, memory: MemfdMemory) -> None:
    memory.may_fill.clear()
    async with holding(tmp_path, memory) as (_, workers):
        first, second = [asyncio.create_task(workers.lend("a")) for _ in range(2)]
        await wait_for(memory.is_filling)
        first.cancel()
        memory.may_fill.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second
        assert await workers.names() == {"a": 1}


async def test_a_copy_that_nobody_waits_for_leaves_nothing(
    tmp_path: Path, memory: MemfdMemory
) -> None:
    memory.may_fill.clear()
    async with holding(tmp_path, memory) as (holdings, workers):
        only = asyncio.create_task(workers.lend("a"))
        await wait_for(memory.is_filling)
        only.cancel()
        memory.may_fill.set()
        with pytest.raises(asyncio.CancelledError):
            await only
        assert holdings.used_bytes == 0
        assert not memory.blocks


async def test_a_block_that_is_made_for_nobody_is_given_up(
    tmp_path: Path, memory: MemfdMemory
) -> None:
    memory.may_create.clear()
    async with holding(tmp_path, memory) as (holdings, workers):
        only = asyncio.create_task(workers.lend("a"))
        await wait_for(memory.is_creating)
        only.cancel()
        memory.may_create.set()
        with pytest.raises(asyncio.CancelledError):
            await only
        assert (holdings.used_bytes, memory.blocks, memory.fills) == (0, [], 0)


async def test_what_cannot_fit_takes_nothing_from_the_next(
    tmp_path: Path, memory: MemfdMemory
) -> None:
    async with holding(tmp_path, memory, max_bytes=4 * PAGE) as (_, workers):
        idle, _lent = [await workers.lend(name) for name in "ab"]
        workers.give_back(idle)
        while await workers.names() != {"a": 0, "b": 1}:
            pass
        with pytest.raises(DeviceMemoryFull) as failed:
            await workers.lend("c", 4 * PAGE)
        assert (failed.value.needed_bytes, failed.value.free_bytes) == (4 * PAGE, 3 * PAGE)
        assert await workers.names() == {"a": 0, "b": 1}
        await workers.lend("d", 3 * PAGE)
        assert await workers.names() == {"b": 1, "d": 1}


async def test_a_device_that_fails_is_said_to_be_lost(tmp_path: Path, memory: MemfdMemory) -> None:
    async with holding(tmp_path, memory) as (holdings, workers):
        await workers.lend("a")
        memory.is_lost = True
        with pytest.raises(CraftcacheError, match="CUDA_ERROR_ILLEGAL_ADDRESS") as failed:
            await workers.lend("b")
        assert type(failed.value) is CraftcacheError, "a fault of its own: workers make copies"
        assert holdings.lost.is_set()
        assert holdings.used_bytes == PAGE
        with pytest.raises(CraftcacheError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            await holdings.verify()


async def test_one_user_cannot_have_all_leases(tmp_path: Path, memory: MemfdMemory) -> None:
    async with holding(tmp_path, memory, max_leases_per_uid=2) as (_, workers):
        first, _second = [await workers.lend("a") for _ in range(2)]
        with pytest.raises(BudgetExceeded, match="uid 1000 has 2 leases"):
            await workers.lend("a")
        await workers.lend("a", uid=WHOSE + 1)
        workers.give_back(first)
        while await workers.names() != {"a": 2}:
            pass
        await workers.lend("a")
