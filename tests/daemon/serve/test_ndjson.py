"""What a client that streams hears: the newest of each file, in bounds, and every outcome."""

from __future__ import annotations

import asyncio

from craftcache.wire import Progress
from craftcached.serve.ndjson import MAX_WAITING, NdjsonStream


def fetching(done: int, file: str = "state_dict.bin") -> Progress:
    return Progress("org/model", file, done, 10**9, "fetching")


async def test_only_the_newest_progress_of_a_file_waits() -> None:
    steps = NdjsonStream()
    for done in range(1000):
        steps.report(fetching(done))
    steps.report(Progress("org/model", "state_dict.bin", 10**9, 10**9, "inspecting"))
    steps.conclude({"event": "result"})
    steps.end()
    (batch,) = [batch async for batch in steps.batches()]
    assert [event["event"] for event in batch] == ["progress", "progress", "result"]
    assert [event.get("state") for event in batch] == ["fetching", "inspecting", None]
    assert batch[0]["done"] == 999


async def test_a_client_that_does_not_read_holds_a_bounded_number_of_steps() -> None:
    steps = NdjsonStream()
    for number in range(MAX_WAITING + 7):
        steps.report(fetching(0, f"{number}.th"))
    steps.conclude({"event": "result"})
    steps.end()
    (batch,) = [batch async for batch in steps.batches()]
    assert len(batch) == MAX_WAITING + 1
    assert batch[0]["file"] == "7.th"
    assert batch[-1] == {"event": "result"}


async def test_what_happens_between_two_batches_comes_with_the_next() -> None:
    steps = NdjsonStream()
    steps.report(fetching(1))
    batches = steps.batches()
    assert [event["done"] for event in await anext(batches)] == [1]
    following = asyncio.ensure_future(anext(batches))
    steps.report(fetching(2))
    steps.report(fetching(3))
    assert [event["done"] for event in await following] == [3]
    steps.end()
    assert [batch async for batch in batches] == []
