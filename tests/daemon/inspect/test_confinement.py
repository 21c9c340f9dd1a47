"""What a confined process can no longer do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from craftcached.inspect.seccomp import NETWORK_CALLS
from tests.support.checkpoints import saved

if TYPE_CHECKING:
    from pathlib import Path

PREPARED = """
import ctypes, errno, os, resource, socket, sys, tempfile
from craftcached.inspect.confine import confine, leave_network
listener = socket.create_server(("127.0.0.1", 0))
address, unused = listener.getsockname(), socket.socket()
libc = ctypes.CDLL(None, use_errno=True)
file = tempfile.TemporaryFile(buffering=0)
leave_network()
confine(cpu_seconds=2, file_bytes=1 << 26)
"""


SANDBOXED = """
import ctypes, os
from craftcached.inspect.seccomp import refuse
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # no new privileges, without which no user may filter
refuse([{"x86_64": 272, "aarch64": 97}[os.uname().machine]])  # unshare
"""


def run(attempt: str, *, before: str = "") -> subprocess.CompletedProcess[str]:
    """What becomes of a process that is confined and then tries."""
    command = [sys.executable, "-c", before + PREPARED + attempt]
    return subprocess.run(command, capture_output=True, text=True, check=False)


needs_filter = pytest.mark.skipif(
    os.uname().machine not in NETWORK_CALLS, reason="this machine's system calls are not known"
)


def test_the_network_is_out_of_reach() -> None:
    done = run(
        "try:\n    socket.create_connection(listener.getsockname())\n"
        "except OSError as error:\n    print(errno.errorcode[error.errno])\n"
    )
    if not done.stdout and not done.returncode:
        pytest.skip("this kernel or container allows no network namespaces")
    assert done.stdout == "ENETUNREACH\n", done.stderr


@needs_filter
@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(address)",
        "socket.socket(socket.AF_UNIX)",
        "unused.connect(address)",
        "if libc.syscall(425, 1, bytes(120)) < 0: raise OSError(ctypes.get_errno(), '')",
    ],
    ids=["connection", "socket", "connect", "io_uring"],
)
def test_the_network_is_out_of_reach_where_namespaces_are_forbidden(attempt: str) -> None:
    done = run(
        f"try:\n    {attempt}\nexcept OSError as error:\n    print(errno.errorcode[error.errno])\n"
        "open('/proc/self/status').close()",
        before=SANDBOXED,
    )
    assert (done.stdout, done.returncode) == ("EPERM\n", 0), done.stderr


@needs_filter
def test_files_are_inspected_where_namespaces_are_forbidden(tmp_path: Path) -> None:
    file = tmp_path / "good.bin"
    file.write_bytes(saved({"weight": torch.arange(100.0)}))
    script = (
        "import asyncio, sys; from pathlib import Path; from craftcached.inspect import Inspector\n"
        "async def main():\n"
        "    async with Inspector() as inspector:\n"
        "        print(len(await inspector.inspect(Path(sys.argv[1]), source='s')))\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", SANDBOXED + script, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert int(done.stdout) > 0, done.stderr


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
