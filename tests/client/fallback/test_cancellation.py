"""A worker's own fetch that is called off ends at once and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

import pytest

from craftcache import AsyncClient, Client
from craftcache.cache.directory import CacheDir
from tests.support.hub import Gate, Stall

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.hub import Repo, TestHub

PATIENCE_S = 20.0
"""Far less than the seconds after which an origin that says nothing counts as dead."""

STALLS: dict[str, tuple[str, Literal["hub", "cdn"], int | None]] = {
    "the Hub's word on the file": ("HEAD", "hub", None),
    "the head of the answer": ("GET", "cdn", None),
    "the body": ("GET", "cdn", 1000),
}
"""What never comes: of which request, of which of the two origins, after how many bytes."""


@pytest.fixture(params=STALLS)
def gate(request: pytest.FixtureRequest, threaded_hub: TestHub) -> Gate:
    """Where the hub stops."""
    method, origin, after = STALLS[request.param]
    gate = Gate()
    threaded_hub.inject(Stall(gate, after), method=method, origin=origin, times=None)
    return gate


def staged(client: Client | AsyncClient) -> list[str]:
    staging = CacheDir(client.cache_dir).staging
    return os.listdir(staging) if staging.exists() else []


async def call_off(client: AsyncClient, source: str, stalled: Callable[[], object]) -> None:
    """Begin a load, wait until the origin has stalled, cancel it, and wait for its end."""
    loading = asyncio.create_task(client.load(source, parts=("lm",)))
    await asyncio.to_thread(stalled)
    loading.cancel()
    await asyncio.wait([loading], timeout=PATIENCE_S)
    assert loading.cancelled()


async def test_cancelling_ends_a_fetch_at_once_and_leaves_nothing(
    base: Path, export_repo: Repo, hub_endpoint: str, gate: Gate
) -> None:
    async with AsyncClient(socket_dir=base / "run", cache_dir=base / "cache") as client:
        await call_off(client, "org/model", gate.reached.wait_blocking)
        assert staged(client) == []
        gate.open()
        export = await client.load("org/model")
        assert (export.served_by, staged(client)) == ("origin", [])


async def test_cancelling_ends_a_handshake_that_nobody_answers(base: Path) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def greeted() -> None:
            connection, _ = listener.accept()
            assert stack.enter_context(connection).recv(1, socket.MSG_PEEK)

        url = f"https://127.0.0.1:{listener.getsockname()[1]}/x-0123456789abcdef.th"
        async with AsyncClient(socket_dir=base / "run", cache_dir=base / "cache") as client:
            await call_off(client, url, greeted)
            assert staged(client) == []


INTERRUPTED = """
import sys
from craftcache import Client

try:
    Client(socket_dir=sys.argv[1], cache_dir=sys.argv[2]).load("org/model")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_ends_a_fetch_at_once_and_leaves_nothing(alone: Client, gate: Gate) -> None:
    script = [sys.executable, "-c", INTERRUPTED, str(alone.socket_dir), str(alone.cache_dir)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as process:
        gate.reached.wait_blocking()
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=PATIENCE_S)
    assert (printed, process.returncode) == ("interrupted\n", 0)
    assert staged(alone) == []
