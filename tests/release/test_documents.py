"""Man pages and completions, as the programs that read them take them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

from craftcache.cli.app import main as craftcache
from craftcached.__main__ import main as craftcached
from craftcached.gpu.__main__ import main as craftcached_gpu
from tests.support.tools import needs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, each with the name of its page."""
    yield name, command
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from commands(f"{name}-{child.name}", child)


COMMANDS = dict(
    [
        *commands("craftcache", craftcache),
        *commands("craftcached", craftcached),
        *commands("craftcached-gpu", craftcached_gpu),
    ]
)


def test_each_command_has_a_page_and_each_page_a_command(dist: Path) -> None:
    assert {page.name for page in (dist / "man").iterdir()} == {f"{name}.1" for name in COMMANDS}


@needs("man")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_says_what_the_help_does(dist: Path, name: str) -> None:
    shown = subprocess.run(
        ["man", "--warnings", "-l", dist / "man" / f"{name}.1"],
        env=os.environ | {"MANWIDTH": "1000", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stderr == ""
    page = " ".join(shown.stdout.split())
    for option in COMMANDS[name].params:
        if isinstance(option, click.Option):
            assert option.opts[0] in page
            assert " ".join((option.help or "").split()) in page
    summary = (COMMANDS[name].help or "").partition("\n\n")[0]
    first_line = " ".join(summary.split())
    assert first_line in page
    assert "..." not in page.partition("SYNOPSIS")[0]


def completed(command: list[str], path: Path) -> set[str]:
    """What a shell offers; the commands that it asks are the environment's own."""
    done = subprocess.run(
        command,
        env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory with ``craftcache`` as the shells are to find it."""
    script = tmp_path / "craftcache"
    script.write_text(f"#!{sys.executable}\nfrom craftcache.cli import main\n\nmain()\n")
    script.chmod(0o755)
    return tmp_path


OFFERED = {"watch", "warm"}


@needs("bash")
def test_bash_completes(dist: Path, path: Path) -> None:
    script = (
        'source "$1"; COMP_WORDS=(craftcache wa); COMP_CWORD=1; '
        '_craftcache_completion craftcache wa; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    file = dist / "completions" / "bash" / "craftcache"
    assert completed(["bash", "-c", script, "bash", str(file)], path) == OFFERED


@needs("zsh")
def test_zsh_completes(dist: Path, path: Path) -> None:
    script = (
        "compdef() { :; }; compadd() { :; }; _describe() { print -l ${(P)3%%:*}; }; "
        "source $1; words=(craftcache wa); CURRENT=2; _craftcache_completion"
    )
    file = dist / "completions" / "zsh" / "_craftcache"
    assert file.read_text().startswith("#compdef craftcache")
    offered = completed(["zsh", "-f", "-c", script, "zsh", str(file)], path)
    assert offered >= OFFERED


@needs("fish")
def test_fish_completes(dist: Path, path: Path) -> None:
    file = dist / "completions" / "fish" / "craftcache.fish"
    script = f"source {file}; complete --do-complete 'craftcache wa'"
    offered = completed(["fish", "--no-config", "--command", script], path)
    assert offered >= OFFERED
