"""One download for any number of requests, and what becomes of it when requests go away."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest

from craftcache import AsyncClient
from craftcached.app import Daemon
from craftcached.settings_reading import load_settings
from tests.support.api import Api
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import Gate, OnDisk, Stall, matching

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

LM = "*/state_dict.bin"
SIZE = sum(path.stat().st_size for path in EXPORT_FILES.values())

WORKERS = """
import os, sys
import torch
from craftcache import Client
ready, start = os.pipe()
for number in range(int(sys.argv[3])):
    if os.fork() == 0:
        os.close(start)
        os.read(ready, 1)  # ends when the parent has started all of them
        export = Client(socket_dir=sys.argv[1], fallback="none").load(sys.argv[2])
        os.write(1, f"{export.served_by} {export.revision}\\n".encode())  # one line in one piece
        os._exit(0)
os.close(start)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


def bytes_sent(hub: TestHub) -> int:
    """Of the export's files; a file may come in several ranges, but no byte of it twice."""
    return sum(hub.bytes_sent(f"*/{name}", origin="cdn") for name in EXPORT_FILES)


def test_sixteen_workers_at_once_fetch_a_cold_source_once(
    daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    command = [sys.executable, "-c", WORKERS, str(daemon.socket_dir), "org/model", "16"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert run.stdout.splitlines() == [f"daemon {export_repo.resolve('main')}"] * 16
    assert bytes_sent(threaded_hub) == SIZE


@pytest.fixture
async def service(inspected: Path, hub: TestHub) -> AsyncIterator[str]:
    """A daemon on the test's own loop, whose Hub has org/model; gives its socket directory."""
    hub.repo("org/model").commit(EXPORT_FILES)
    settings = load_settings(
        {
            "cache_dir": inspected / "cache",
            "socket_dir": inspected / "run",
            "state_dir": inspected / "state",
            "hub_endpoint": hub.endpoint,
            "insecure_hosts": ("127.0.0.1",),
        }
    )
    async with Daemon(settings):
        yield str(inspected / "run")


@asynccontextmanager
async def connected(socket_dir: str) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(f"{socket_dir}/craftcache.sock", limit=0)
    async with aiohttp.ClientSession("http://craftcached", connector=connector) as session:
        yield session


async def warm(session: aiohttp.ClientSession, *sources: str) -> list[dict[str, object]]:
    async with session.post("/v1/warm", json={"sources": sources}) as answer:
        body = await answer.json(content_type=None)
        assert answer.status == 200, body
        return list(body["results"])


async def test_many_warms_at_once_fetch_once(service: str, hub: TestHub) -> None:
    gate = Gate()
    hub.inject(Stall(gate, after=1000), path=LM, origin="cdn")
    async with connected(service) as session:
        tasks = [asyncio.create_task(warm(session, "org/model", "org/model")) for _ in range(50)]
        await gate.reached.wait()
        tasks += [asyncio.create_task(warm(session, "org/model")) for _ in range(50)]
        async with session.get("/v1/health"):
            pass  # all requests before this one have been taken up
        gate.open()
        results = [result for task in tasks for result in await task]
    assert len({str(result["revision"]) for result in results}) == 1
    assert bytes_sent(hub) == SIZE


async def test_two_repositories_with_the_same_files_fetch_them_once(
    service: str, hub: TestHub
) -> None:
    hub.repo("org/copy").commit(EXPORT_FILES)
    gate = Gate()
    hub.inject(Stall(gate, after=1000), path=LM, origin="cdn")
    heads = matching("*/resolve/*/compression_state_dict.bin", method="HEAD", origin="hub")
    async with connected(service) as session:
        first = asyncio.create_task(warm(session, "org/model"))
        await gate.reached.wait()
        second = asyncio.create_task(warm(session, "org/copy"))
        await hub.wait_for_request(lambda request: heads(request) and request.done, count=2)
        gate.open()
        (mine,), (theirs,) = await first, await second
    assert bytes_sent(hub) == SIZE
    assert (mine["source"], theirs["source"]) == ("org/model", "org/copy")


async def test_a_load_and_a_warm_of_a_new_url_fetch_it_once(service: str, hub: TestHub) -> None:
    lm = EXPORT_FILES["state_dict.bin"]
    hub.files["/model.th"] = OnDisk(lm)
    url = hub.cdn_url("/model.th")
    gate = Gate()
    hub.inject(Stall(gate, after=1000), path="/model.th")
    async with connected(service) as session, AsyncClient(socket_dir=service) as client:
        loading = asyncio.create_task(client.load_state_dict(url))
        await gate.reached.wait()
        warming = asyncio.create_task(warm(session, url))
        async with session.get("/v1/health"):
            pass
        gate.open()
        assert "best_state" in await loading
        (result,) = await warming
    assert result["bytes_fetched"] == lm.stat().st_size == hub.bytes_sent("/model.th")


async def test_each_request_hears_of_its_own_source(service: str, hub: TestHub) -> None:
    hub.repo("org/copy").commit(EXPORT_FILES)
    headers = {"Accept": "application/x-ndjson"}
    body = {"sources": ["org/model", "org/copy"]}
    async with (
        connected(service) as session,
        session.post("/v1/warm", json=body, headers=headers) as answer,
    ):
        events = [json.loads(line) async for line in answer.content]
    for source in body["sources"]:
        states = [e["state"] for e in events if e["source"] == source and e["event"] == "progress"]
        assert "fetching" in states
        assert states[-1] == "done"


async def test_a_failure_names_the_source_of_each_request(service: str, hub: TestHub) -> None:
    bad = b"no checkpoint"
    for repo_id in ("org/bad", "org/worse"):
        hub.repo(repo_id).commit(dict.fromkeys(EXPORT_FILES, bad))
    gate = Gate()
    hub.inject(Stall(gate), path=LM, origin="cdn")
    async with connected(service) as session:
        body = {"sources": ["org/bad", "org/worse"]}
        asked = asyncio.create_task(session.post("/v1/warm", json=body))
        await gate.reached.wait()
        gate.open()
        async with await asked as answer:
            problems = (await answer.json(content_type=None))["results"]
    assert [(p["code"], p["source"]) for p in problems] == [
        ("NotACheckpoint", "org/bad"),
        ("NotACheckpoint", "org/worse"),
    ]


async def test_a_waiter_that_goes_away_leaves_the_download_to_the_others(
    service: str, hub: TestHub
) -> None:
    gate = Gate()
    hub.inject(Stall(gate, after=1000), path=LM, origin="cdn")
    async with connected(service) as first, connected(service) as second:
        gone = asyncio.create_task(warm(first, "org/model"))
        await gate.reached.wait()
        stays = asyncio.create_task(warm(second, "org/model"))
        async with second.get("/v1/health"):
            pass
        gone.cancel()
        await asyncio.wait([gone])
        gate.open()
        (result,) = await stays
    assert result["bytes_fetched"] == SIZE
    assert bytes_sent(hub) == SIZE


async def test_the_last_waiter_that_goes_away_stops_the_download(
    service: str, hub: TestHub, inspected: Path
) -> None:
    gate = Gate()
    hub.inject(Stall(gate, after=1000), path=LM, origin="cdn")
    stalled = matching(LM, origin="cdn")
    async with connected(service) as session:
        tasks = [asyncio.create_task(warm(session, "org/model")) for _ in range(3)]
        await gate.reached.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        ended = await hub.wait_for_request(lambda request: stalled(request) and request.done)
        assert ended.bytes_sent < SIZE
        gate.open()
        (result,) = await warm(session, "org/model")
    assert result["revision"]
    staging = inspected / "cache/.craftcache/staging"
    assert [path for path in staging.rglob("*") if path.is_file()] == []


async def test_a_silent_hub_holds_up_only_those_who_ask_it(service: str, hub: TestHub) -> None:
    hub.files["/plain.th"] = OnDisk(EXPORT_FILES["state_dict.bin"])
    gate = Gate()
    hub.inject(Stall(gate), path="/silent/*", method="HEAD", times=None)
    silent = [f"silent/model-{number}" for number in range(50)]
    async with connected(service) as session:
        stuck = asyncio.create_task(session.post("/v1/warm", json={"sources": silent}))
        await gate.reached.wait()
        await warm(session, hub.cdn_url("/plain.th"))
        async with session.get("/v1/models") as answer:
            assert len((await answer.json())["models"]) == 1
        assert not stuck.done()
        stuck.cancel()
        await asyncio.wait([stuck])
        gate.open()


def test_what_is_fetched_by_url_and_by_repository_is_kept_once(
    daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    path = EXPORT_FILES["state_dict.bin"]
    threaded_hub.files["/plain.th"] = OnDisk(path)
    with Api(daemon.socket_dir) as api:
        api.warm("org/model")
        url = threaded_hub.cdn_url("/plain.th")
        (result,) = api.warm(f"{url}#sha256={OnDisk(path).sha256}").json()["results"]
    assert result["bytes_fetched"] == 0
    assert threaded_hub.count("GET", "/plain.th") == 0
