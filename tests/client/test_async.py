"""The asynchronous client: it never blocks its loop, and a cancelled call is withdrawn."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from blockbuster import blockbuster_ctx

import craftcache.aio
from craftcache import AsyncClient
from craftcache.daemon.admin import AdminClient
from craftcache.errors import NotFound, UnknownDevice
from craftcache.watch_rule import WatchRule
from tests.support.checkpoints import assert_same, saved
from tests.support.daemons import EXPORT
from tests.support.hub import Gate, Stall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from craftcache.wire import Progress
    from tests.support.clients import Node


def expected(filename: str = "state_dict.bin") -> Any:
    return torch.load(EXPORT / filename, weights_only=True)


@pytest.fixture
async def client(node: Node) -> AsyncIterator[AsyncClient]:
    async with node.daemon.async_client() as client:
        yield client


def stalled(node: Node, repo_id: str) -> Gate:
    """A new repository whose download waits at a gate."""
    content = saved({"best_state": {"w": torch.rand(1000)}})
    node.hub.repo(repo_id).commit({"state_dict.bin": content})
    gate = Gate()
    node.hub.inject(Stall(gate, after=1000), path=f"*/{repo_id}/*", origin="cdn", times=None)
    return gate


async def test_every_method_does_what_the_clients_does(
    client: AsyncClient, node: Node, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    (warmed,) = await client.warm("org/model", on_progress=seen.append)
    export = await client.load("org/model")
    assert export.served_by == "daemon"
    assert export.revision == warmed.revision
    assert_same(export.lm, expected())
    assert_same(await client.load_state_dict("org/model", "state_dict.bin"), expected())
    module = torch.nn.ParameterDict(
        {name.replace(".", "_"): torch.nn.Parameter(torch.zeros(2)) for name in ("a", "b")}
    )
    torch.save({"best_state": module.state_dict()}, tmp_path / "state_dict.bin")
    await client.load_into(module, tmp_path / "state_dict.bin")
    assert (await client.resolve("org/model", "state_dict.bin")).is_file()
    assert (await client.status()).pid == node.daemon.pid
    assert "org/model" in {model.source for model in await client.models()}
    assert (await client.explain("org/model")).served_by == "daemon"
    assert client.cache_dir == node.daemon.cache_dir
    assert client.socket_dir == node.daemon.socket_dir
    with pytest.raises(NotFound):
        await client.load("org/missing")
    with pytest.raises(UnknownDevice):
        await client.load("org/model", device="nonsense")


async def test_no_call_blocks_the_event_loop(node: Node, client: AsyncClient) -> None:
    away = AsyncClient(socket_dir=node.daemon.cache_dir, cache_dir=node.daemon.cache_dir)
    with blockbuster_ctx("craftcache"):
        await client.load("org/model")
        await client.load(EXPORT)
        await client.load_state_dict("org/model", "state_dict.bin", cache_dir=EXPORT)
        await client.resolve("org/model", "state_dict.bin")
        await client.warm("org/model")
        await client.models()
        await client.explain("org/model")
        await client.close()
        assert (await away.load("org/model")).served_by == "cache"
        await away.close()


async def test_the_loop_goes_on_during_a_load_that_waits(client: AsyncClient, node: Node) -> None:
    gate = stalled(node, "org/heartbeat")
    loading = asyncio.create_task(client.load("org/heartbeat", parts=("lm",)))
    await gate.reached.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    hot = await client.load("org/model")
    assert hot.served_by == "daemon"
    assert not loading.done()
    gate.open()
    assert (await loading).served_by == "daemon"


async def test_many_loads_at_once(node: Node) -> None:
    # Without another way: on a busy machine one that waits for a second takes the verified copy.
    daemon = node.daemon
    async with AsyncClient(
        socket_dir=daemon.socket_dir, cache_dir=daemon.cache_dir, fallback="none"
    ) as client:
        exports = await asyncio.gather(*(client.load("org/model") for _ in range(100)))
    assert {export.served_by for export in exports} == {"daemon"}
    assert_same(exports[-1].lm, expected())
    weights = [next(iter(export.lm["best_state"].values())) for export in exports]
    assert len({weight.data_ptr() for weight in weights}) == len(weights)


async def test_a_cancelled_load_is_withdrawn_at_the_daemon(client: AsyncClient, node: Node) -> None:
    gate = stalled(node, "org/cancelled")
    loading = asyncio.create_task(client.load("org/cancelled", parts=("lm",)))
    await gate.reached.wait()
    assert (await client.status()).requests == 1
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading

    def is_given_up(request: Any) -> bool:
        return "org/cancelled" in request.path and request.origin == "cdn" and request.done

    await node.hub.wait_for_request(is_given_up)
    assert (await client.status()).requests == 0
    gate.open()
    assert (await client.load("org/cancelled", parts=("lm",))).served_by == "daemon"


async def test_a_load_with_a_timeout_ends_in_time(client: AsyncClient, node: Node) -> None:
    gate = stalled(node, "org/timeout")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await client.load("org/timeout", parts=("lm",))
    gate.open()


async def test_a_cancelled_call_that_waits_for_its_turn_ends_at_once(
    client: AsyncClient, node: Node
) -> None:
    gate = stalled(node, "org/turn")
    waiting = [
        asyncio.create_task(client.load("org/turn", parts=("lm",)))
        for _ in range(craftcache.aio.MAX_THREADS)
    ]
    await gate.reached.wait()
    last = asyncio.create_task(client.load("org/model"))
    await asyncio.sleep(0)
    last.cancel()
    with pytest.raises(asyncio.CancelledError):
        await last
    assert not any(task.done() for task in waiting)
    gate.open()
    assert {export.served_by for export in await asyncio.gather(*waiting)} == {"daemon"}


def test_one_client_serves_several_loops(node: Node) -> None:
    client = node.daemon.async_client()
    served: list[str] = []

    def run() -> None:
        async def load() -> None:
            exports = await asyncio.gather(*(client.load("org/model") for _ in range(5)))
            served.extend(export.served_by for export in exports)

        asyncio.run(load())

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run()
    asyncio.run(client.close())
    assert served == ["daemon"] * 20


async def test_followers_take_no_thread_from_other_calls(
    client: AsyncClient, node: Node, tmp_path: Path
) -> None:
    await asyncio.to_thread(
        AdminClient(node.daemon.socket_dir).put_watch,
        WatchRule(name="run", directory=str(tmp_path)),
    )

    async def follow() -> None:
        async for _ in client.follow("run"):
            pass

    following = [asyncio.create_task(follow()) for _ in range(craftcache.aio.MAX_THREADS)]
    await asyncio.sleep(0)  # each has asked by then
    assert (await client.load("org/model")).served_by == "daemon"
    for task in following:
        task.cancel()
    outcomes = await asyncio.gather(*following, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}


async def test_a_closed_client_stays_usable(client: AsyncClient) -> None:
    await client.close()
    assert (await client.load("org/model")).served_by == "daemon"


async def test_a_closed_client_has_no_threads(node: Node) -> None:
    before = {thread.name for thread in threading.enumerate()}
    client = node.daemon.async_client()
    await client.load("org/model")
    assert {t.name for t in threading.enumerate()} > before
    await client.close()
    names = {thread.name for thread in threading.enumerate()} - before
    assert not [name for name in names if name.startswith("craftcache")]
    assert not [
        name
        for name in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{name}")
        and "handles.sock" in os.readlink(f"/proc/self/fd/{name}")
    ]


async def test_a_client_comes_whole_through_a_pickle(client: AsyncClient) -> None:
    async with pickle.loads(pickle.dumps(client)) as copy:
        assert isinstance(copy, AsyncClient)
        assert (copy.cache_dir, copy.socket_dir) == (client.cache_dir, client.socket_dir)
        assert (await copy.load("org/model")).served_by == "daemon"


FORKING = """
import asyncio, os, sys
from craftcache import AsyncClient
from craftcache.daemon.admin import AdminClient

client = AsyncClient(socket_dir=sys.argv[1], cache_dir=sys.argv[2])

async def load() -> str:
    return (await client.load("org/model", device="meta")).served_by

print(asyncio.run(load()), flush=True)
child = os.fork()
if child == 0:
    print(asyncio.run(load()), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(asyncio.run(load()), status)
"""


def test_a_forked_child_has_threads_of_its_own(node: Node) -> None:
    daemon = node.daemon
    printed = subprocess.run(
        [sys.executable, "-c", FORKING, str(daemon.socket_dir), str(daemon.cache_dir)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.split() == ["daemon", "daemon", "daemon", "0"]
