"""The command as a process of its own, against a real daemon and hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.forked import can_be_forked, run_command
from tests.support.hub import TestHub, hub_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

CRAFTCACHE = Path(sys.executable).with_name("craftcache")
SIZE = sum(path.stat().st_size for path in EXPORT_FILES.values())


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def problem(self) -> Any:
        return json.loads(self.err)


@dataclass(frozen=True)
class Node:
    """A daemon that has ``org/model`` warm, and the hub that it came from."""

    hub: TestHub
    daemon: DaemonProcess

    def run(self, *arguments: str, **environment: str) -> Ran:
        """Run the command with this node's directories."""
        return run(
            *("--socket-dir", str(self.daemon.socket_dir)),
            *("--cache-dir", str(self.daemon.cache_dir)),
            *arguments,
            HF_ENDPOINT=self.hub.endpoint,
            **environment,
        )


def run(*arguments: str, **environment: str) -> Ran:
    variables = os.environ | environment
    if can_be_forked(variables):
        done = run_command(arguments, variables)
    else:
        done = subprocess.run(
            [CRAFTCACHE, *arguments], env=variables, capture_output=True, text=True
        )
    return Ran(done.returncode, done.stdout, done.stderr)


@contextmanager
def running_node() -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="cc-") as base, hub_in_thread() as hub:
        hub.repo("org/model").commit(EXPORT_FILES)
        arguments = ("--insecure-host", "127.0.0.1")
        with DaemonProcess(Path(base), *arguments, HF_ENDPOINT=hub.endpoint) as daemon:
            with daemon.client() as client:
                client.warm("org/model")
            yield Node(hub, daemon)
