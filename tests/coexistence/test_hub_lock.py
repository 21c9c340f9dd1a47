"""The daemon and unmodified huggingface_hub want the same blob at the same time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from craftcache.layout.cache import CacheDir
from craftcached.bring.hub_lock import HubLock
from daemons import EXPORT_FILES, DaemonProcess
from hub import Gate, Stall

if TYPE_CHECKING:
    from pathlib import Path

    from hub import Repo, TestHub

LIBRARY = """
import sys
from huggingface_hub import hf_hub_download
print(hf_hub_download("org/model", sys.argv[1], cache_dir=sys.argv[2]), flush=True)
"""

HOLDER = """
import sys
from huggingface_hub.utils import WeakFileLock
with WeakFileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def library(cache_dir: Path, hub: TestHub, filename: str) -> subprocess.Popen[str]:
    """The unmodified library downloading one file, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", LIBRARY, filename, str(cache_dir)],
        env=os.environ | {"HF_ENDPOINT": hub.endpoint},
        stdout=subprocess.PIPE,
        text=True,
    )


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds a lock of huggingface_hub until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_library_waits_for_our_download_and_links(
    daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate, after=1000), path="*/state_dict.bin", origin="cdn")
    warming = subprocess.Popen(
        [
            *(sys.executable, "-m", "craftcache.cli"),
            *("--socket-dir", str(daemon.socket_dir), "warm", "org/model"),
        ]
    )
    gate.reached.wait_blocking()
    with library(daemon.cache_dir, threaded_hub, "state_dict.bin") as other:
        threaded_hub.wait_for_request_blocking(
            lambda request: (
                "hf_hub" in request.headers.get("User-Agent", "") and "main" in request.path
            )
        )
        gate.open()
        path, _ = other.communicate()
    assert warming.wait() == 0
    assert other.returncode == 0
    with open(path.strip(), "rb") as file:
        assert file.read() == EXPORT_FILES["state_dict.bin"].read_bytes()
    size = EXPORT_FILES["state_dict.bin"].stat().st_size
    assert threaded_hub.bytes_sent("*/state_dict.bin", origin="cdn") == size


async def test_a_holder_that_does_nothing_is_passed_by(base: Path) -> None:
    tree = CacheDir(base).hub_tree("org/model")
    path = tree.lock_path("ab")
    path.parent.mkdir(parents=True)
    with holder(path) as other:
        other.send_signal(signal.SIGSTOP)
        lock = HubLock(tree, "ab", patience=0.0)
        assert await lock.acquire() is False
        assert not lock.is_held
        lock.release()
        other.send_signal(signal.SIGCONT)
        assert other.stdin is not None
        other.stdin.close()


async def test_whoever_was_faster_left_the_blob(base: Path) -> None:
    tree = CacheDir(base).hub_tree("org/model")
    path = tree.lock_path("ab")
    path.parent.mkdir(parents=True)
    with holder(path) as other:
        lock = HubLock(tree, "ab", patience=3600.0)
        waiting = asyncio.create_task(lock.acquire())
        tree.blob("ab").parent.mkdir(parents=True)
        tree.blob("ab").write_bytes(b"whole")
        assert await waiting is True
        lock.release()
        assert other.stdin is not None
        other.stdin.close()


async def test_a_stalled_download_lets_go(base: Path) -> None:
    tree = CacheDir(base).hub_tree("org/model")
    lock = HubLock(tree, "ab", patience=0.0)
    assert await lock.acquire() is False
    # Nothing progresses, so the other gets the lock while we still want it.
    with await asyncio.to_thread(holder, tree.lock_path("ab")) as other:
        assert not lock.is_held
        assert other.stdin is not None
        other.stdin.close()
    lock.release()


async def test_a_cancelled_wait_holds_nothing(base: Path) -> None:
    tree = CacheDir(base).hub_tree("org/model")
    path = tree.lock_path("ab")
    path.parent.mkdir(parents=True)
    with holder(path) as other:
        lock = HubLock(tree, "ab", patience=3600.0)
        waiting = asyncio.create_task(lock.acquire())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert not lock.is_held
        assert other.stdin is not None
        other.stdin.close()
