"""What a confined process can no longer do."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PREPARED = """
import errno, os, resource, socket, sys, tempfile
from craftcached.inspect.confine import confine
listener = socket.create_server(("127.0.0.1", 0))
file = tempfile.TemporaryFile(buffering=0)
confine(cpu_seconds=2)
"""


def run(attempt: str) -> subprocess.CompletedProcess[str]:
    """What becomes of a process that is confined and then tries."""
    command = [sys.executable, "-c", PREPARED + attempt]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_network_is_out_of_reach() -> None:
    done = run(
        "try:\n    socket.create_connection(listener.getsockname())\n"
        "except OSError as error:\n    print(errno.errorcode[error.errno])\n"
    )
    if not done.stdout and not done.returncode:
        pytest.skip("this kernel or container allows no network namespaces")
    assert done.stdout == "ENETUNREACH\n", done.stderr


def test_memory_is_limited() -> None:
    assert "MemoryError" in run("bytearray(300 * 1024 * 1024)").stderr
    assert run("bytearray(100 * 1024 * 1024)").returncode == 0


def test_files_are_few_and_short() -> None:
    assert "Too many open files" in run("[os.open('/', 0) for _ in range(20)]").stderr
    assert (
        "File too large"
        in run(
            "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "while True: os.write(file.fileno(), bytes(1 << 24))"
        ).stderr
    )


def test_time_is_limited() -> None:
    assert run("while True: pass").returncode == -signal.SIGXCPU


def test_no_new_privileges() -> None:
    done = run("print(open('/proc/self/status').read())")
    assert "NoNewPrivs:\t1" in done.stdout
