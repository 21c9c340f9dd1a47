"""One running task for any number of requests: who gets what when some of them go away."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from craftcached.singleflight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Work:
    """Work that the test starts and ends; counts how often it ran and how it ended."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancellations = 0
        self.running = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.failure: Exception | None = None

    async def __call__(self, report: Callable[[int], None]) -> str:
        self.runs += 1
        run = self.runs
        report(run)
        self.running.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancellations += 1
            await self.may_stop.wait()
            raise
        if self.failure is not None:
            raise self.failure
        return f"result {run}"


class Requests:
    """Requests for one key, as tasks that report the result they got."""

    def __init__(self, flights: SingleFlight[str, int], work: Work) -> None:
        self._flights = flights
        self._work = work
        self.heard: list[int] = []

    def start(self, *, leave: asyncio.Event | None = None) -> asyncio.Task[str]:
        return asyncio.create_task(self._request(leave))

    async def _request(self, leave: asyncio.Event | None) -> str:
        async with self._flights.join("key", self._work, self.heard.append) as result:
            if leave is not None:
                await leave.wait()
            return result


@pytest.fixture
async def work() -> Work:
    return Work()


@pytest.fixture
async def released() -> list[str]:
    return []


@pytest.fixture
async def flights(released: list[str]) -> AsyncIterator[SingleFlight[str, int]]:
    async def release(result: str) -> None:
        released.append(result)

    flights: SingleFlight[str, int] = SingleFlight(release)
    yield flights
    assert len(flights) == 0


@pytest.fixture
async def requests(flights: SingleFlight[str, int], work: Work) -> Requests:
    return Requests(flights, work)


async def until_joined(work: Work) -> None:
    """Until the work runs and every request that was started waits for it."""
    await work.running.wait()
    for _ in range(3):
        await asyncio.sleep(0)


async def test_all_requests_share_one_run(
    requests: Requests, work: Work, released: list[str]
) -> None:
    tasks = [requests.start() for _ in range(5)]
    await until_joined(work)
    work.may_end.set()
    assert await asyncio.gather(*tasks) == ["result 1"] * 5
    assert work.runs == 1
    assert released == ["result 1"]


async def test_whoever_joins_late_hears_the_last_progress(requests: Requests, work: Work) -> None:
    first = requests.start()
    await until_joined(work)
    second = requests.start()
    await until_joined(work)
    assert requests.heard == [1, 1]
    work.may_end.set()
    await asyncio.gather(first, second)


async def test_a_failure_reaches_all_and_the_next_request_tries_again(
    requests: Requests, work: Work, released: list[str]
) -> None:
    work.failure = ValueError("broken")
    tasks = [requests.start() for _ in range(3)]
    await until_joined(work)
    work.may_end.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes == [work.failure] * 3
    work.failure = None
    assert await requests.start() == "result 2"
    assert released == ["result 2"]


@pytest.mark.parametrize("gone", [0, 1, 2], ids=["the first", "the second", "the last"])
async def test_a_request_that_goes_away_leaves_the_others_their_result(
    requests: Requests, work: Work, gone: int
) -> None:
    tasks = [requests.start() for _ in range(3)]
    await until_joined(work)
    tasks[gone].cancel()
    await asyncio.wait([tasks[gone]])
    assert tasks[gone].cancelled()
    work.may_end.set()
    others = [task for task in tasks if task is not tasks[gone]]
    assert await asyncio.gather(*others) == ["result 1"] * 2
    assert work.cancellations == 0


async def test_the_last_that_goes_away_ends_the_work(
    requests: Requests, work: Work, released: list[str]
) -> None:
    tasks = [requests.start() for _ in range(3)]
    await until_joined(work)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert work.cancellations == 1
    assert released == []


async def test_a_request_during_the_end_of_abandoned_work_starts_it_anew(
    requests: Requests, work: Work
) -> None:
    work.may_stop.clear()
    first = requests.start()
    await until_joined(work)
    first.cancel()
    await until_joined(work)
    second = requests.start()
    await until_joined(work)
    assert work.runs == 1
    work.may_stop.set()
    work.may_end.set()
    assert await second == "result 2"
    assert first.cancelled()


async def test_a_request_cancelled_twice_still_makes_room_for_the_next(
    requests: Requests, work: Work
) -> None:
    work.may_stop.clear()
    first = requests.start()
    await until_joined(work)
    for _ in range(2):
        first.cancel()
        await until_joined(work)
    assert first.cancelled()
    work.may_stop.set()
    work.may_end.set()
    assert await requests.start() == "result 2"


async def test_a_result_is_released_when_its_last_holder_leaves(
    requests: Requests, work: Work, released: list[str]
) -> None:
    work.may_end.set()
    leave = [asyncio.Event(), asyncio.Event()]
    tasks = [requests.start(leave=event) for event in leave]
    await until_joined(work)
    leave[0].set()
    await tasks[0]
    assert released == []
    leave[1].set()
    await tasks[1]
    assert released == ["result 1"]


async def test_a_result_that_came_in_spite_of_cancellation_is_released(
    flights: SingleFlight[str, int], released: list[str]
) -> None:
    running = asyncio.Event()

    async def stubborn(_report: Callable[[int], None]) -> str:
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "a result"
        raise AssertionError

    async def request() -> None:
        async with flights.join("key", stubborn, lambda _: None):
            pass

    task = asyncio.create_task(request())
    await running.wait()
    task.cancel()
    await asyncio.wait([task])
    assert released == ["a result"]


async def test_keys_do_not_wait_for_each_other(flights: SingleFlight[str, int], work: Work) -> None:
    async def other(_report: Callable[[int], None]) -> str:
        return "other"

    first = Requests(flights, work).start()
    await until_joined(work)
    async with AsyncExitStack() as stack:
        result = await stack.enter_async_context(flights.join("other", other, lambda _: None))
        assert result == "other"
        assert len(flights) == 2
    work.may_end.set()
    await first
