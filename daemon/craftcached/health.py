"""``python -m craftcached.health``: whether the daemon answers, said by the exit code.

For the readiness checks of containers: it is asked every few seconds, so it imports no library and
asks for nothing that takes the daemon time. Exit codes: 0 it answers, 1 it does not, and a line on
stderr says why.
"""

from __future__ import annotations

import http.client
import socket
import sys
from typing import TYPE_CHECKING

from craftcache.config import choose_socket_dir
from craftcache.errors import CraftcacheError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check"]

ANSWER_SECONDS = 5.0
"""For a daemon that answers in less than a millisecond when it is not held up."""


def check(socket_dir: Path | None) -> str | None:
    """Ask the daemon whose sockets are in ``socket_dir``; returns why it is not ready, or None."""
    if socket_dir is None:
        return "there are no sockets of a daemon on this machine; set CRAFTCACHE_SOCKET_DIR"
    path = socket_dir / "craftcache.sock"
    connection = http.client.HTTPConnection("craftcached", timeout=ANSWER_SECONDS)
    try:
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(ANSWER_SECONDS)
        connection.sock.connect(str(path))
        connection.request("GET", "/v1/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{path}: {error}"
    finally:
        connection.close()
    return None if status == http.HTTPStatus.OK else f"{path}: the daemon answers {status}"


def main() -> None:
    """Check the daemon that this machine's settings name."""
    try:
        reason = check(choose_socket_dir())
    except CraftcacheError as error:
        reason = str(error)
    if reason is not None:
        print(f"craftcached.health: {reason}", file=sys.stderr)  # noqa: T201  # all that it says
        sys.exit(1)


if __name__ == "__main__":
    main()
