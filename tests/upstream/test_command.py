"""The command as it is installed beside AudioCraft, and a daemon of another environment."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.command import SIZE, Node, Ran, running_node
from tests.support.daemons import EXPORT_FILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .environment import Upstream

    Command = Callable[..., Ran]


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
