"""Who gets a connection, the line, memory and the disk's room, and in which order."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache.digests import Hasher
from craftcache.errors import CraftcacheError, StorageFull
from craftcached.fetch import Priority
from craftcached.fetch.disk_space import DiskSpace
from craftcached.fetch.hashing import OrderedHash
from craftcached.fetch.limits import Bandwidth, Claimant, Connections, MemoryBudget
from craftcached.fetch.spans import Span, SpanSet
from craftcached.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def threads() -> Iterator[Threads]:
    pool = Threads(2, "test")
    yield pool
    pool.close()


class Holder:
    """Holds one connection until told to give it back.

    Attributes:
        has_asked: Set when it waits in the line, or has what it asked for.
        has_it: Set when it holds the connection.
    """

    def __init__(self, connections: Connections, host: str, claimant: Claimant) -> None:
        self.has_asked = asyncio.Event()
        self.has_it = asyncio.Event()
        self._release = asyncio.Event()
        self.task = asyncio.create_task(self._hold(connections, host, claimant))

    async def _hold(self, connections: Connections, host: str, claimant: Claimant) -> None:
        self.has_asked.set()  # it asks before anybody else has a turn
        async with connections.one(host, claimant):
            self.has_it.set()
            await self._release.wait()

    async def release(self) -> None:
        self._release.set()
        await self.task


async def test_a_waiting_worker_goes_before_background_warming() -> None:
    connections = Connections(1, 1)
    first = Holder(connections, "a", Claimant(Priority.BACKGROUND))
    await first.has_it.wait()
    background = Holder(connections, "a", Claimant(Priority.BACKGROUND))
    waited_for = Holder(connections, "a", Claimant(Priority.WAITED_FOR))
    await waited_for.has_asked.wait()
    await first.release()
    await waited_for.has_it.wait()
    assert not background.has_it.is_set()
    await waited_for.release()
    await background.has_it.wait()
    await background.release()


async def test_among_equals_the_one_that_has_least_goes_first() -> None:
    connections = Connections(2, 2)
    greedy, modest = Claimant(Priority.BACKGROUND), Claimant(Priority.BACKGROUND)
    held = [Holder(connections, "a", greedy), Holder(connections, "a", greedy)]
    for holder in held:
        await holder.has_it.wait()
    more = Holder(connections, "a", greedy)
    other = Holder(connections, "a", modest)
    await other.has_asked.wait()
    await held[0].release()
    await other.has_it.wait()
    assert not more.has_it.is_set()
    for holder in (held[1], other, more):
        await holder.release()


async def test_a_busy_host_does_not_hold_up_another() -> None:
    connections = Connections(2, 1)
    claimant = Claimant(Priority.BACKGROUND)
    a, b, c = (Holder(connections, host, claimant) for host in ("a", "a", "c"))
    for holder in (a, c):
        await holder.has_it.wait()
    assert b.has_asked.is_set()
    assert not b.has_it.is_set()
    for holder in (a, b, c):
        await holder.release()


async def test_who_stops_waiting_takes_nothing_along() -> None:
    connections = Connections(1, 1)
    claimant = Claimant(Priority.BACKGROUND)
    first, second, third = (Holder(connections, "a", claimant) for _ in range(3))
    await third.has_asked.wait()
    second.task.cancel()
    await asyncio.wait([second.task])
    await first.release()
    await third.has_it.wait()
    await third.release()
    assert claimant.connections == 0


async def test_the_line_is_given_to_a_waiting_worker_first() -> None:
    bandwidth = Bandwidth(200_000)
    order: list[str] = []

    async def take(name: str, priority: Priority) -> None:
        await bandwidth.take(20_000, Claimant(priority))
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for name in ("first", "second", "third"):
            group.create_task(take(name, Priority.BACKGROUND))
        await asyncio.sleep(0)
        group.create_task(take("worker", Priority.WAITED_FOR))
    assert order.index("worker") < order.index("third")


async def test_room_is_promised_before_it_is_used(threads: Threads) -> None:
    space = DiskSpace(lambda: 100, threads, Path())
    await space.reserve("big", 80, source="s")
    with pytest.raises(StorageFull) as full:
        await space.reserve("too much", 30, source="s")
    assert full.value.missing_bytes == 10
    await space.reserve("small", 20, source="s")
    space.release("big")
    await space.reserve("too much", 80, source="s")


async def test_what_is_written_needs_no_promise_any_more(threads: Threads) -> None:
    free = 100
    space = DiskSpace(lambda: free, threads, Path())
    await space.reserve("a", 60, source="s")
    free -= 50
    space.written("a", 50)
    await space.reserve("b", 40, source="s")
    with pytest.raises(StorageFull):
        await space.reserve("c", 1, source="s")


async def test_errors_of_the_disk_have_names(threads: Threads) -> None:
    space = DiskSpace(lambda: 5, threads, Path())
    await space.reserve("a", 5, source="s")
    full = await space.error_for(OSError(errno.ENOSPC, "full"), "a", source="s")
    assert isinstance(full, StorageFull)
    assert full.missing_bytes > 0
    broken = await space.error_for(OSError(errno.EIO, "broken"), "a", source="s")
    assert type(broken) is CraftcacheError
    assert not broken.retryable


BLOCK = 1000


@given(
    order=st.permutations(range(8)),
    resumed=st.sets(st.integers(0, 7)),
    memory=st.integers(0, 8 * BLOCK),
)
def test_blocks_in_any_order_give_the_digest_of_the_file(
    order: list[int], resumed: set[int], memory: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = os.urandom(8 * BLOCK)
    path: Path = tmp_path_factory.mktemp("hash") / "part"
    path.write_bytes(data)
    budget = MemoryBudget(memory)

    async def digest() -> str:
        threads = Threads(2, "test")
        with path.open("rb") as file:
            ordered = OrderedHash(Hasher(), file.fileno(), budget, threads)
            hashing = asyncio.create_task(ordered.run())
            present = SpanSet(Span(i * BLOCK, (i + 1) * BLOCK) for i in resumed)
            ordered.written_to(present.end_of_run(0))
            for index in order:
                if index in resumed:
                    continue
                start = index * BLOCK
                ordered.keep(start, [data[start : start + 300], data[start + 300 : start + BLOCK]])
                present.add(Span(start, start + BLOCK))
                ordered.written_to(present.end_of_run(ordered.position))
                await asyncio.sleep(0)
            ordered.complete()
            digests = await hashing
            ordered.close()
        threads.close()
        return digests.sha256

    assert asyncio.run(digest()) == hashlib.sha256(data).hexdigest()
    assert budget.used == 0
