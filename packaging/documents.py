"""Writes man pages and shell completions, from the commands' own help.

    python packaging/documents.py DIRECTORY

gives ``DIRECTORY/man/*.1`` and ``DIRECTORY/completions/{bash,zsh,fish}/``, each file under the name
by which the shell looks for it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from click.shell_completion import get_completion_class
from click_man.core import write_man_pages

from craftcache.cli.app import main as craftcache
from craftcache.version import VERSION
from craftcached.__main__ import main as craftcached
from craftcached.gpu.__main__ import main as craftcached_gpu

if TYPE_CHECKING:
    import click

COMMANDS = {
    "craftcache": craftcache,
    "craftcached": craftcached,
    "craftcached-gpu": craftcached_gpu,
}

COMPLETION_FILES = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}


def write_manual(directory: Path) -> None:
    """Write a man page for each command and each of its subcommands."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, command in COMMANDS.items():
        _summarize(command)
        write_man_pages(name, command, version=VERSION, target_dir=str(directory))


def write_completions(directory: Path) -> None:
    """Write what bash, zsh and fish source to complete each command."""
    for shell, filename in COMPLETION_FILES.items():
        generator = get_completion_class(shell)
        assert generator is not None, shell  # noqa: S101  # click has all three
        (directory / shell).mkdir(parents=True, exist_ok=True)
        for name, command in COMMANDS.items():
            variable = f"_{name.upper().replace('-', '_')}_COMPLETE"
            script = generator(command, {}, name, variable).source()
            (directory / shell / filename.format(name)).write_text(script)


def _summarize(command: click.Command) -> None:
    """Let the page's title line be the first sentence; click cuts it off for its own lists."""
    paragraph = (command.help or "").partition("\n\n")[0]
    sentence = re.split(r"(?<=[.])\s", " ".join(paragraph.split()), maxsplit=1)[0]
    command.short_help = sentence.rstrip(".")
    for subcommand in getattr(command, "commands", {}).values():
        _summarize(subcommand)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_manual(target / "man")
    write_completions(target / "completions")
