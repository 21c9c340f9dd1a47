"""An environment without torch: what needs none works, and a load says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from omegaconf import OmegaConf

from tests.support.checkpoints import saved
from tests.support.clients import assert_nothing_published

if TYPE_CHECKING:
    from craftcache import Client
    from tests.support.hub import TestHub

EXPORT = Path(__file__).parents[1] / "data" / "musicgen-tiny"

WITHOUT = "import sys; sys.modules['torch'] = None\n"

OWN_FETCH = """
from craftcache import Client
source, filename, socket_dir, cache_dir = sys.argv[1:]
client = Client(socket_dir=socket_dir, cache_dir=cache_dir)
print(client.warm(source, filenames=[filename])[0].served_by)
print(client.resolve(source, filename))
"""
"""A worker without a daemon."""


class Gadget:
    """Its pickle runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.getoutput, ("true",)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT + script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "call", ["load(source)", "load_state_dict(source, 'state_dict.bin')"], ids=["load", "one file"]
)
def test_a_load_says_in_one_line_what_to_install(call: str) -> None:
    script = f"import craftcache; source = sys.argv[1]; craftcache.{call}"
    done = run(script, str(EXPORT))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "craftcache.errors.CraftcacheError: torch is not installed here, and tensors need it. "
        "pip install 'craftcache[torch]'"
    )


@pytest.mark.parametrize("command", [("load",), ("export", "check")], ids=" ".join)
def test_the_commands_say_it_too(command: tuple[str, ...]) -> None:
    done = run("import craftcache.cli as c; c.main(sys.argv[1:])", *command, str(EXPORT))
    assert done.returncode == 1
    assert done.stderr.endswith("pip install 'craftcache[torch]'\n")
    assert "Traceback" not in done.stderr


def test_a_checkpoint_is_read_without_it() -> None:
    script = (
        "import os; from craftcache.checkpoint.reader import read_index\n"
        "index = read_index(os.open(sys.argv[1], os.O_RDONLY))\n"
        "print(index.reason, len(index.tensors))"
    )
    done = run(script, str(EXPORT / "state_dict.bin"))
    assert (done.stdout, done.stderr) == ("None 37\n", "")


@pytest.mark.parametrize(
    "content",
    [(EXPORT / "state_dict.bin").read_bytes(), saved({"xp.cfg": OmegaConf.create({"dim": 3})})],
    ids=["indexable", "omegaconf"],
)
def test_a_worker_without_a_daemon_warms_and_resolves(
    alone: Client, threaded_hub: TestHub, content: bytes
) -> None:
    threaded_hub.repo("org/alone").commit({"state_dict.bin": content})
    done = own_fetch(alone, "org/alone")
    assert done.stderr.count("\n") <= 2, done.stderr  # that there is no daemon, and what that means
    served_by, path = done.stdout.splitlines()
    assert served_by == "origin"
    assert Path(path).read_bytes() == content


def test_a_worker_without_a_daemon_refuses_what_is_unsafe(
    alone: Client, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("org/bad").commit({"state_dict.bin": saved(Gadget())})
    done = own_fetch(alone, "org/bad")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("craftcache.errors.UnsafeCheckpoint: org/bad: ")
    assert "subprocess.getoutput" in last
    assert_nothing_published(alone.cache_dir)


def own_fetch(client: Client, source: str) -> subprocess.CompletedProcess[str]:
    return run(OWN_FETCH, source, "state_dict.bin", str(client.socket_dir), str(client.cache_dir))


def test_the_daemon_imports_none() -> None:
    script = (
        "import importlib, pkgutil, craftcached\n"
        "for module in pkgutil.walk_packages(craftcached.__path__, 'craftcached.'):\n"
        "    if not module.name.startswith('craftcached.demo.'):\n"
        "        importlib.import_module(module.name)\n"
        "print(sys.modules['torch'])"
    )
    done = run(script)
    assert (done.stdout, done.stderr) == ("None\n", "")
