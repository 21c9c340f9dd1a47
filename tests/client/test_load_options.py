"""``load(on_progress=..., timeout=...)``, of both clients, with a daemon and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from craftcache import AsyncClient, Client
from craftcache.errors import Unavailable
from tests.support.checkpoints import saved
from tests.support.hub import Gate, Stall

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.wire import Progress
    from tests.support.clients import Node
    from tests.support.hub import TestHub

SHORT_SECONDS = 0.2
LONG_SECONDS = 120.0


def stalled(hub: TestHub, repo_id: str) -> Gate:
    """A new repository whose download waits at a gate."""
    content = saved({"best_state": {"w": torch.rand(1000)}})
    hub.repo(repo_id).commit({"state_dict.bin": content})
    gate = Gate()
    hub.inject(Stall(gate, after=1000), path=f"*/{repo_id}/*", origin="cdn", times=None)
    return gate


def test_a_load_tells_its_progress_in_the_callers_thread(node: Node) -> None:
    repo = node.hub.repo("org/told")
    repo.commit({"state_dict.bin": saved({"best_state": {"w": torch.rand(1000)}})})
    steps: list[Progress] = []
    with node.daemon.client() as client:
        client.load("org/told", parts=("lm",), on_progress=steps.append, timeout=LONG_SECONDS)
        told = len(steps)
        client.load("org/told", parts=("lm",), on_progress=steps.append)
    assert {step.source for step in steps} == {"org/told"}
    assert steps[0].state == "queued"
    assert {"fetching", "done"} & {step.state for step in steps}
    assert len(steps) == told  # a hit has nothing to tell


def test_a_load_that_takes_too_long_says_so_and_the_next_one_goes_on(node: Node) -> None:
    gate = stalled(node.hub, "org/slow")
    with node.daemon.client() as client:
        with pytest.raises(Unavailable, match=r"^org/slow: not there after 0\.2 s") as raised:
            client.load("org/slow", parts=("lm",), timeout=SHORT_SECONDS)
        assert raised.value.retryable
        assert "craftcache warm org/slow" in (raised.value.hint or "")
        gate.open()
        export = client.load("org/slow", parts=("lm",), timeout=LONG_SECONDS)
    assert export.served_by == "daemon"


def test_without_a_daemon_the_time_is_the_same(
    base: Path, threaded_hub: TestHub, hub_endpoint: str
) -> None:
    gate = stalled(threaded_hub, "org/slow")
    steps: list[Progress] = []
    with Client(socket_dir=base / "run", cache_dir=base / "cache") as alone:
        with pytest.raises(Unavailable, match="not there after"):
            alone.load("org/slow", parts=("lm",), timeout=SHORT_SECONDS)
        gate.open()
        export = alone.load("org/slow", parts=("lm",), on_progress=steps.append)
    assert export.served_by == "origin"
    assert "fetching" in {step.state for step in steps}


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_what_is_no_time_is_a_mistake(node: Node, timeout: float) -> None:
    with node.daemon.client() as client, pytest.raises(ValueError, match="timeout is"):
        client.load("org/model", timeout=timeout)


async def test_the_asynchronous_client_does_the_same(node: Node) -> None:
    gate = stalled(node.hub, "org/slow-async")
    steps: list[Progress] = []
    async with AsyncClient(
        socket_dir=node.daemon.socket_dir, cache_dir=node.daemon.cache_dir
    ) as client:
        with pytest.raises(Unavailable, match="not there after"):
            await client.load("org/slow-async", parts=("lm",), timeout=SHORT_SECONDS)
        gate.open()
        await client.load(
            "org/slow-async", parts=("lm",), on_progress=steps.append, timeout=LONG_SECONDS
        )
    assert {step.source for step in steps} == {"org/slow-async"}
