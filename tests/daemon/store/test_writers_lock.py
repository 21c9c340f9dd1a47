"""The lock of writers: who waits for whom, whatever is withdrawn meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcached.store.writers_lock import WritersLock

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager


async def settled() -> None:
    """Until every task has got as far as it can."""
    for _ in range(8):
        await asyncio.sleep(0)


class Writer:
    """A task that takes a turn and keeps it until it is told to end."""

    def __init__(self, turn: AbstractAsyncContextManager[None]) -> None:
        self.is_in = False
        self.may_end = asyncio.Event()
        self.task = asyncio.create_task(self._run(turn))

    async def _run(self, turn: AbstractAsyncContextManager[None]) -> None:
        async with turn:
            self.is_in = True
            try:
                await self.may_end.wait()
            finally:
                self.is_in = False


async def test_those_that_add_to_other_sources_do_it_at_once() -> None:
    turns = WritersLock()
    async with AsyncExitStack() as stack:
        for source in "abc":
            await stack.enter_async_context(turns.adding(source))


async def test_those_of_one_source_and_those_that_change_wait() -> None:
    turns = WritersLock()
    first, same, change = (
        Writer(turns.adding("a")),
        Writer(turns.adding("a")),
        Writer(turns.changing()),
    )
    await settled()
    assert (first.is_in, same.is_in, change.is_in) == (True, False, False)
    later = Writer(turns.adding("b"))  # behind who changes, who would wait for ever otherwise
    await settled()
    assert not later.is_in
    first.may_end.set()
    await settled()
    assert (same.is_in, change.is_in, later.is_in) == (False, True, False)
    change.may_end.set()
    await settled()
    assert (same.is_in, later.is_in) == (True, True)
    for writer in (same, later):
        writer.may_end.set()
    await asyncio.gather(*(each.task for each in (first, same, change, later)))


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "alone", "end", "withdraw"]), st.integers(0, 7)),
        max_size=40,
    )
)
def test_nobody_meets_who_changes_and_all_have_their_turn(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        turns = WritersLock()
        writers: list[tuple[str, Writer]] = []
        for what, number in steps:
            if what in ("a", "b", "alone"):
                turn = turns.changing() if what == "alone" else turns.adding(what)
                writers.append((what, Writer(turn)))
            elif writers:
                writer = writers[number % len(writers)][1]
                if what == "end":
                    writer.may_end.set()
                else:
                    writer.task.cancel()
            await settled()
            inside = [kind for kind, writer in writers if writer.is_in]
            assert inside == ["alone"] or (
                "alone" not in inside and len(inside) == len(set(inside))
            )
        for _, writer in writers:
            writer.may_end.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*(writer.task for _, writer in writers), return_exceptions=True)

    asyncio.run(run())


async def test_a_turn_that_was_given_while_it_was_withdrawn_is_passed_on() -> None:
    turns = WritersLock()
    first = Writer(turns.changing())
    await settled()
    second, third = Writer(turns.changing()), Writer(turns.changing())
    await settled()
    first.may_end.set()
    second.task.cancel()
    await settled()
    assert third.is_in
    third.may_end.set()
    await third.task
    with pytest.raises(asyncio.CancelledError):
        await second.task
