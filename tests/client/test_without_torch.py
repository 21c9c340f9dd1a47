"""An environment without torch: what needs none works, and a load says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXPORT = Path(__file__).parents[1] / "data" / "musicgen-tiny"

WITHOUT = "import sys; sys.modules['torch'] = None\n"


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


def test_the_command_says_it_too() -> None:
    done = run("import craftcache.cli as c; c.main(['load', sys.argv[1]])", str(EXPORT))
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
