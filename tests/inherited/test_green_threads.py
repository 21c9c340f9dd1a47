"""Workers whose modules gevent or eventlet has replaced: they load, and wait as those do."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.daemons import DaemonProcess

GEVENT = "import gevent.monkey; gevent.monkey.patch_all()"
EVENTLET = "import eventlet; eventlet.monkey_patch()"
TAKEN_AWAY = """
import select
for name in ("poll", "epoll", "kqueue", "kevent", "devpoll"):
    if hasattr(select, name): delattr(select, name)
"""
IMPORT = "import craftcache, craftcache.client"
PYSOCKS = """
import socket

class OnlyTcp(socket.socket):
    # As PySocks's class, which is often put in the place of socket.socket.
    def __init__(self, family=socket.AF_INET, type=socket.SOCK_STREAM, proto=0, fileno=None):
        if type not in {socket.SOCK_STREAM, socket.SOCK_DGRAM}:
            raise ValueError(f"Socket type must be stream or datagram, not {type!r}")
        super().__init__(family, type, proto, fileno)

socket.socket = OnlyTcp
socket.setdefaulttimeout(0.001)
"""
MANY_FILES = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
"""

PATCHED = {
    "gevent": [GEVENT, IMPORT],
    "gevent, late": [IMPORT, GEVENT],
    "eventlet": [EVENTLET, IMPORT],
    "eventlet, late": [IMPORT, EVENTLET],
    "sockets of PySocks": [PYSOCKS, IMPORT],
    "poll taken away": [TAKEN_AWAY, IMPORT],
    "poll taken away, late": [IMPORT, TAKEN_AWAY],
    "poll taken away, many files": [TAKEN_AWAY, IMPORT, MANY_FILES],
}

LOAD = """
import json, sys
client = craftcache.Client(socket_dir=sys.argv[1], fallback="none")
for _ in range(2):
    export = client.load("org/model")
    print(json.dumps([export.served_by, len(export.lm["best_state"])]), flush=True)
sys.stdin.readline()
client = craftcache.Client(socket_dir=sys.argv[1], cache_dir=sys.argv[2])
print(json.dumps(client.load("org/model").served_by), flush=True)
"""

GO_ON = {
    "gevent": "import gevent; spawn = gevent.spawn",
    "eventlet": "import eventlet; spawn = eventlet.spawn",
}

WAIT = """
import json, sys
client = craftcache.Client(socket_dir=sys.argv[1], fallback="none")
client.status()
print("ready", flush=True)
sys.stdin.readline()
spawn(lambda: print("another goes on", flush=True))
print(json.dumps(client.load("org/model").served_by), flush=True)
"""


def start(steps: list[str], daemon: DaemonProcess) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-c", "\n".join(steps)),
            *(str(daemon.socket_dir), str(daemon.cache_dir)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def needs(patched: str) -> None:
    module = patched.partition(",")[0]
    if module in GO_ON and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def read(stream: IO[str] | None) -> Any:
    assert stream is not None
    return json.loads(stream.readline())


@pytest.mark.parametrize("patched", PATCHED)
def test_a_patched_worker_is_served_by_the_daemon_and_gives_a_silent_one_up(
    daemon: DaemonProcess, patched: str
) -> None:
    """What is verified in the cache is loaded then."""
    needs(patched)
    expected = len(daemon.client().load("org/model").lm["best_state"])
    with start([*PATCHED[patched], LOAD], daemon) as worker:
        assert [read(worker.stdout) for _ in range(2)] == [["daemon", expected]] * 2
        daemon.pause()
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
        assert read(worker.stdout) == "cache"
    assert worker.returncode == 0


@pytest.mark.parametrize("patched", ["gevent", "eventlet"])
def test_other_green_threads_go_on_while_one_waits(daemon: DaemonProcess, patched: str) -> None:
    needs(patched)
    daemon.client().warm("org/model")
    with start([*PATCHED[patched], GO_ON[patched], WAIT], daemon) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        daemon.pause()
        worker.stdin.write("go\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "another goes on\n"
        os.kill(daemon.pid, signal.SIGCONT)
        assert read(worker.stdout) == "daemon"
