"""Events: their numbers, what is kept of them, and what a listener is told that was away."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from craftcached.events import Events

if TYPE_CHECKING:
    from craftcached.events import Event

START = 1_000_000.0
FIRST = int(START * 1e6) + 1


def told(count: int, *, kept: int = 8) -> Events:
    events = Events(kept, clock=lambda: START)
    for number in range(count):
        events.tell("step", number=number)
    return events


async def heard(events: Events, since: int | None) -> list[Event]:
    """All that a listener hears of what is there already."""
    events.end()
    return [event async for batch in events.stream(since) for event in batch]


async def test_a_listener_hears_what_comes_from_now_on() -> None:
    events = told(3)
    stream = events.stream()
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    events.tell("late", source="org/model")
    assert await first == [{"seq": FIRST + 3, "event": "late", "at": START, "source": "org/model"}]
    events.end()
    assert [batch async for batch in stream] == []


async def test_what_is_kept_is_told_again_from_any_number() -> None:
    assert [event["number"] for event in await heard(told(5), 0)] == [0, 1, 2, 3, 4]
    assert [event["number"] for event in await heard(told(5), FIRST + 1)] == [2, 3, 4]
    assert await heard(told(5), FIRST + 4) == []
    assert await heard(told(5), None) == []


async def test_what_is_lost_is_said_once() -> None:
    gap, *rest = await heard(told(20), FIRST + 1)
    assert gap == {"seq": FIRST + 11, "event": "gap", "at": START, "since": FIRST + 1}
    assert [event["number"] for event in rest] == list(range(12, 20))
    assert [event["event"] for event in await heard(told(20), gap["seq"])] == ["step"] * 8


async def test_the_next_daemon_says_what_the_last_one_took_with_it() -> None:
    later = Events(8, clock=lambda: START + 60)
    later.tell("step", number=0)
    assert [event["event"] for event in await heard(later, FIRST + 3)] == ["gap", "step"]
    behind = told(1)  # its clock was set back
    [gap] = await heard(behind, later.newest)
    assert (gap["event"], gap["seq"]) == ("gap", behind.newest)


async def test_a_slow_listener_is_told_that_it_lost_some_and_holds_nothing_up() -> None:
    events = told(0)
    stream = events.stream(0)
    events.tell("step", number=0)
    assert [event["number"] for event in await anext(stream)] == [0]
    for number in range(1, 100):
        events.tell("step", number=number)
    assert [event["event"] for event in await anext(stream)] == ["gap"]
    assert [event["number"] for event in await anext(stream)] == list(range(92, 100))


def test_observers_hear_each_event_before_the_next_one() -> None:
    events = told(2)
    seen: list[Event] = []
    events.observe(seen.append)
    events.tell("a")
    events.tell("b")
    assert [event["event"] for event in seen] == ["a", "b"]


@given(st.lists(st.integers(1, 30), max_size=6), st.integers(1, 40))
def test_whoever_goes_on_from_the_last_number_hears_each_event_once_or_of_its_loss(
    bursts: list[int], kept: int
) -> None:
    async def listen() -> None:
        events = Events(kept, clock=lambda: START)
        last, numbers, lost = events.newest, [], 0
        for burst in bursts:
            for _ in range(burst):
                events.tell("step")
            stream = events.stream(last)  # one that comes and goes away again
            while last != events.newest:
                for event in await anext(stream):
                    if event["event"] == "gap":
                        lost += event["seq"] - event["since"]
                    else:
                        numbers.append(event["seq"])
                    last = event["seq"]
            await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
        assert len(numbers) + lost == sum(bursts)
        assert all(before < after for before, after in pairwise(numbers))

    asyncio.run(listen())
