"""Queued warms: what is accepted, how long it is tried, and how it is withdrawn."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from craftcache.errors import (
    CraftcacheError,
    NotFound,
    StorageFull,
    Unavailable,
)
from craftcache.sources import parse
from craftcache.wire import Warm, WarmOptions
from craftcached.database import Database
from craftcached.warm.queue import MAX_QUEUED, WarmQueue, pause_after
from tests.support.api import Api
from tests.support.daemons import DaemonProcess
from tests.support.hub import Gate, Stall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from craftcached.database import WarmJob
    from tests.support.hub import TestHub

FULL = StorageFull("full", missing_bytes=1)
AWAY = Unavailable("away")


@asynccontextmanager
async def promises(base: Path, warm_now: Callable[[Warm], None]) -> AsyncIterator[WarmQueue]:
    """WarmQueue in records of their own; what ``warm_now`` raises is how each fails."""

    async def warm_one(job: WarmJob) -> None:
        warm_now(job.warm)
        await asyncio.Event().wait()

    async with Database(base / "state") as records:
        made = WarmQueue(records, warm_one)
        await made.resume()
        try:
            yield made
        finally:
            await made.close()


def warms(sources: Iterable[str]) -> list[Warm]:
    return [Warm(parse(source)) for source in sources]


async def test_a_full_disk_or_an_origin_that_is_away_keeps_the_promise(base: Path) -> None:
    failures = {"org/full": FULL, "org/away": AWAY}
    tried = asyncio.Semaphore(0)

    def fail(warm: Warm) -> None:
        tried.release()  # the queue notes the failure before anybody else has a turn
        raise failures[warm.source.shown]

    async with promises(base, fail) as made:
        await made.add(warms(failures))
        for _ in failures:
            await tried.acquire()
        assert [promise.failure for promise in made.all()] == [FULL, AWAY]
    async with promises(base, fail) as again:
        assert [promise.source for promise in again.all()] == list(failures)


async def test_what_only_the_asker_can_mend_is_given_up(base: Path) -> None:
    def fail(_warm: Warm) -> None:
        raise NotFound("no such repository")

    async with promises(base, fail) as made:
        await made.add(warms(["org/none"]))
        await asyncio.gather(*made._tasks.values())
        assert made.all() == []
    async with promises(base, fail) as again:
        assert again.all() == []


async def test_there_is_room_for_so_many_and_the_next_is_to_try_later(base: Path) -> None:
    sources = [f"org/model-{number}" for number in range(MAX_QUEUED)]
    async with promises(base, lambda _: None) as made:
        await made.add(warms(sources[1:]))
        with pytest.raises(Unavailable) as refused:
            await made.add(warms(["org/a", "org/b"]))
        assert refused.value.retryable
        assert refused.value.retry_after
        await made.add(warms([sources[0]]))
        await made.add(warms(sources))  # the same once more takes no room
        assert len(made) == MAX_QUEUED


def test_each_pause_is_longer_up_to_the_longest() -> None:
    pauses = [pause_after(AWAY, tries) or 0.0 for tries in range(1, 50)]
    assert pauses[:3] == [15.0, 30.0, 60.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 3600.0
    assert pause_after(FULL, 1) == 15.0
    assert pause_after(Unavailable("busy", retry_after=100.0), 1) == 100.0
    assert pause_after(CraftcacheError("bad"), 1) is None


def test_a_queued_warm_is_listed_and_withdrawn(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate), path="*", method="HEAD", origin="hub", times=None)
    (job,) = api.warm("org/model", files=("state_dict.bin",), wait=False).json()["jobs"]
    (listed,) = api.get("/warm")["jobs"]
    assert listed == job | {
        "files": ["state_dict.bin"],
        "resident": False,
        "pair_only": False,
        "hold": 0.0,
        "tries": 0,
        "failure": None,
    }
    path = f"/warm/{job['id']}"
    assert api.request("DELETE", path).json() == job
    assert api.get("/warm") == {"jobs": []}
    assert api.request("DELETE", path).status_code == 404
    gate.open()
    daemon.terminate()
    daemon.start()
    with Api(daemon.socket_dir) as fresh:
        assert fresh.get("/warm") == {"jobs": []}


def test_what_would_never_be_done_is_refused_at_once(base: Path) -> None:
    with DaemonProcess(base, "--allow", "org/*") as daemon, Api(daemon.socket_dir) as api:
        for source, code in (("other/model", "PolicyDenied"), ("watch:run", "InvalidSource")):
            response = api.warm("org/model", source, wait=False)
            assert (response.status_code >= 400, response.json()["code"]) == (True, code)
        assert api.get("/warm") == {"jobs": []}


async def test_each_option_outlives_a_restart(base: Path) -> None:
    options = [WarmOptions(("a.th",)), WarmOptions(resident=True), WarmOptions(refresh=False)]
    wanted = [Warm(parse("org/model"), each) for each in (*options, WarmOptions())]
    async with promises(base, lambda _: None) as made:
        await made.add(wanted)
    async with promises(base, lambda _: None) as again:
        assert [queued.options for queued in again.all()] == [warm.options for warm in wanted]
