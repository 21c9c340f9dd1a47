"""The command as such: its help, its usage, and what it does where no daemon is."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from craftcache.cli.app import main
from craftcache.version import VERSION
from tests.support.command import run


def test_help_and_version() -> None:
    listed = run("--help")
    assert listed.code == 0
    commands = re.findall(r"^  ([a-z]+)  +[A-Z]", listed.out, re.MULTILINE)
    assert commands == sorted(main.commands)
    assert "..." not in listed.out.partition("Commands:")[2]
    assert run("--version").out == f"craftcache {VERSION}\n"


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, craftcache.cli.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert not {"torch", "rich", "httpx", "huggingface_hub", "aiohttp"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("warm",),
        ("warm", "--frobnicate", "org/model"),
        ("warm", "--detach", "--check", "org/model"),
        ("warm", "--check", "--timeout", "1", "org/model"),
        ("warm", "--timeout", "0", "org/model"),
        ("load", "org/model", "--part", "drums"),
        ("run",),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert ran.err.startswith("Usage: ")
    assert ran.out == ""
