"""The environments that have AudioCraft, and programs that run in them."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.daemons import DaemonProcess

__all__ = ["ENVIRONMENTS", "PROGRAMS", "Node", "Upstream", "isolated"]

ROOT = Path(__file__).parents[2]

PROGRAMS = Path(__file__).parent / "programs"
"""What is run by its interpreter, and by no other."""

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""For torch: sums of floats depend on how many threads share them, and tiny models gain nothing."""

_ISOLATED = """
mount --bind "$1" "$1" && mount --options remount,bind,ro "$1" && shift && exec "$@"
"""
"""What a shell does first in a mount namespace of its own, with a directory and a command."""


class Node(NamedTuple):
    """Where a daemon's socket and cache are, or would be."""

    socket_dir: Path
    cache_dir: Path


@dataclass(frozen=True, slots=True)
class Upstream:
    """AudioCraft 1.3.0 as ``make audiocraft`` installs it, with its dependencies and craftcache.

    Attributes:
        directory: The virtual environment.
        last: The file that is made in it when all is installed.
    """

    directory: Path
    last: str

    @property
    def is_installed(self) -> bool:
        """All of it."""
        return (self.directory / self.last).exists()

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.directory / "bin" / "python")

    @property
    def configurations(self) -> Path:
        """What AudioCraft's own models were trained with."""
        return self.directory / "audiocraft-1.3.0" / "config"

    def run(
        self,
        *program: str | Path,
        home: Path,
        within: Sequence[str] = (),
        **environment: str,
    ) -> Any:
        """Run a program; returns what it printed last, read as JSON, or None if it printed nothing.

        It sees none of the tests' own environment.

        Args:
            program: The interpreter's arguments: a file, or ``-c`` and code, and its arguments.
            home: Its home and working directory.
            within: A command that runs the one that is appended to it.
            environment: Beside HOME, PATH and ONE_THREAD.
        """
        done = subprocess.run(
            [*within, self.python, "-W", "ignore", *program],
            cwd=home,
            env={"HOME": str(home), "PATH": os.environ["PATH"], **ONE_THREAD, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None

    def run_offline(
        self,
        *program: str | Path,
        home: Path,
        node: Node | DaemonProcess,
        options: Sequence[str] = (),
        **environment: str,
    ) -> Any:
        """``run`` by the environment's own ``craftcache run``, with no network.

        The cache is mounted read-only. Where namespaces are not allowed, the test is skipped.

        Args:
            program: As of ``run``, like ``home``.
            home: Likewise.
            node: Whose cache and socket there are.
            options: Of ``craftcache run``.
            environment: Beside what that sets.
        """
        place = ("--socket-dir", str(node.socket_dir), "--cache-dir", str(node.cache_dir))
        command = (self.python, "-m", "craftcache.cli", *place, "run", *options, "--")
        within = (*isolated(node.cache_dir), *command)
        return self.run(*program, home=home, within=within, **environment)


ENVIRONMENTS = {
    "newest": Upstream(ROOT / ".venv-audiocraft", ".upstream"),
    "pinned": Upstream(ROOT / ".venv-audiocraft-pinned", ".craftcache"),
}
"""With the newest libraries that it works with, and with those that it asks for."""


def isolated(directory: Path) -> tuple[str, ...]:
    """A command that runs another without network, and with ``directory`` read-only."""
    for user in ((), ("--map-root-user",)):
        unshare = ("unshare", *user, "--net", "--mount")
        command = (*unshare, "sh", "-c", _ISOLATED, "sh", str(directory))
        if not subprocess.run([*command, "true"], capture_output=True).returncode:
            return command
    pytest.skip("no network and mount namespaces are to be had here: unshare fails")
