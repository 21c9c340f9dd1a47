"""Real users: programs that run under another uid, as root alone can start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import DaemonProcess

__all__ = ["User", "ask_as", "open_to_all"]

# Everything is imported before: the interpreter's own files may be for its owner alone. The kernel
# takes down who connects at the moment of the connection.
PROGRAM = """
import json, os, sys
import httpx
transport = httpx.HTTPTransport(uds=sys.argv[2])
with httpx.Client(transport=transport, base_url="http://craftcached/v1", timeout=60) as client:
    os.setgroups([])
    os.setgid(int(sys.argv[1]))
    os.setuid(int(sys.argv[1]))
    answer = client.request(sys.argv[3], sys.argv[4], json=json.loads(sys.argv[5]))
    print(json.dumps([answer.status_code, answer.json()]))
"""


@dataclass(frozen=True, slots=True)
class User:
    """A user of the machine, other than the daemon's.

    Attributes:
        uid: Its user id; no name is needed for it.
        daemon: The daemon that it asks.
    """

    uid: int
    daemon: DaemonProcess

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """The status and the JSON of a request over HTTP; ``path`` below ``/v1``."""
        return ask_as(self.uid, self.daemon, method, path, body)


def ask_as(
    uid: int, daemon: DaemonProcess, method: str, path: str, body: object = None
) -> tuple[int, Any]:
    """The status and the JSON of a request that a process of that user makes over HTTP."""
    socket = str(daemon.socket_dir / "craftcache.sock")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(uid), socket, method, path, json.dumps(body)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    status, answer = json.loads(done.stdout)
    return status, answer


def open_to_all(base: Path) -> None:
    """Let other users reach the sockets below ``base``, which was made for its owner alone."""
    os.chmod(base, 0o755)
