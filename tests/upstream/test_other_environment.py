"""The command and the client as they are beside AudioCraft, and a daemon of another environment."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
import torch

from tests.support.checkpoints import saved
from tests.support.command import SIZE, Node, Ran, running_node
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import Gate, Stall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .environment import Upstream

    Command = Callable[..., Ran]


WITHDRAW = """
import asyncio, sys
from craftcache import AsyncClient

async def main(source, socket_dir, cache_dir):
    async with AsyncClient(socket_dir=socket_dir, cache_dir=cache_dir) as client:
        begun = asyncio.Event()
        warm = asyncio.ensure_future(client.warm(source, on_progress=lambda _: begun.set()))
        await begun.wait()
        try:
            await asyncio.wait_for(warm, 0.01)
        except asyncio.TimeoutError:
            print('"withdrawn"')

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A daemon of the tests' own environment."""
    with running_node() as running:
        yield running


@pytest.fixture
def craftcache(upstream: Upstream, node: Node) -> Command:
    """Runs the command, with that daemon's directories."""
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(node.daemon.state_dir),
        "HF_ENDPOINT": node.hub.endpoint,
        "CRAFTCACHE_SOCKET_DIR": str(node.daemon.socket_dir),
        "CRAFTCACHE_CACHE_DIR": str(node.daemon.cache_dir),
    }

    def run(*arguments: str) -> Ran:
        done = subprocess.run(
            [upstream.directory / "bin" / "craftcache", *arguments],
            env=variables,
            capture_output=True,
            text=True,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


def test_the_daemon_warms_what_it_names(
    craftcache: Command, node: Node, upstream: Upstream
) -> None:
    name = f"org/{upstream.directory.name.lstrip('.')}"
    node.hub.repo(name).commit(EXPORT_FILES)
    ran = craftcache("warm", name, "--json")
    assert ran.code == 0, ran.err
    (warmed,) = ran.json["results"]
    assert warmed["served_by"] == "daemon"
    assert warmed["bytes_fetched"] + warmed["bytes_reused"] == SIZE
    assert name in {model["source"] for model in craftcache("ls", "--json").json["models"]}


def test_a_program_runs_with_the_cache(craftcache: Command, node: Node) -> None:
    ran = craftcache("run", "--", "sh", "-c", "echo $HF_HUB_CACHE $HF_HUB_OFFLINE")
    assert (ran.code, ran.out, ran.err) == (0, f"{node.daemon.cache_dir} 1\n", "")


def test_a_shell_takes_the_same_from_what_env_prints(craftcache: Command, node: Node) -> None:
    ran = craftcache("env")
    assert ran.code == 0, ran.err
    told = subprocess.run(
        ["sh", "-c", f"{ran.out}\necho $HF_HUB_CACHE"], capture_output=True, text=True, check=True
    )
    assert told.stdout == f"{node.daemon.cache_dir}\n"


def test_the_doctor_finds_nothing_to_mend(craftcache: Command) -> None:
    ran = craftcache("doctor", "--json")
    states = {each["check"]: each["state"] for each in ran.json["findings"]}
    assert ran.code == 0, states
    assert {states[check] for check in ("daemon", "version", "cache agreement")} == {"ok"}


@pytest.mark.parametrize("served_by", ["daemon", "origin"])
def test_a_call_that_takes_too_long_is_withdrawn(
    upstream: Upstream, node: Node, tmp_path: Path, served_by: str
) -> None:
    name = f"org/{tmp_path.name}"
    content = saved({"name": name, "weights": torch.zeros(1000)})  # as no other model has them
    node.hub.repo(name).commit(dict.fromkeys(EXPORT_FILES, content))
    node.hub.inject(Stall(Gate(), after=1000), path=f"*/{name}/*", origin="cdn", times=None)
    sockets = node.daemon.socket_dir if served_by == "daemon" else tmp_path / "none"
    said = upstream.run(
        *("-c", WITHDRAW, name, sockets, tmp_path / "cache"),
        home=tmp_path,
        HF_ENDPOINT=node.hub.endpoint,
        CRAFTCACHE_INSECURE_HOSTS="127.0.0.1",
    )
    assert said == "withdrawn"
