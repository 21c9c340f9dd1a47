"""The daemon and unmodified huggingface_hub want the same blob at the same time."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from craftcache.cache.directory import CacheDir
from craftcache.digests import Promise, hash_stamped
from craftcache.sources import HubSource
from craftcache.wire import Progress
from craftcached.fetch import Fetched, Priority, RemoteFile
from craftcached.inspect import Inspector
from craftcached.store.store import Store
from craftcached.warm.acquire import FileAcquirer
from craftcached.warm.description import DescribedFile, Description, HubBlob
from craftcached.warm.hub_lock import HubLock
from craftcached.warm.inspections import CheckpointInspections
from craftcached.warm.progress import SourceProgress
from craftcached.warm.stalls import StallDetector
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import Gate, Stall
from tests.support.hub.gates import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.support.hub import Repo, TestHub

LIBRARY = """
import sys
from huggingface_hub import hf_hub_download
print(hf_hub_download("org/model", sys.argv[1], cache_dir=sys.argv[2]), flush=True)
"""

TOTAL = 10

LOOKS = 100
"""Of a lock at what it waits for; without patience, it looks in each turn of the event loop."""

HOLDER = """
import sys
from huggingface_hub.utils import WeakFileLock
with WeakFileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


class Looked(StallDetector):
    """A StallDetector that counts how often somebody looked whether anything came."""

    def __init__(self) -> None:
        super().__init__()
        self.enough = asyncio.Event()
        self._looks = itertools.count(1)

    def snapshot(self) -> Mapping[str | None, int]:
        if next(self._looks) == LOOKS:
            self.enough.set()
        return super().snapshot()


def fetching(file: str, done: int) -> Progress:
    return Progress("org/model", file, done, TOTAL, "fetching")


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
    lock, reception = HubLock(tree, "ab", patience=0.0), StallDetector()
    assert await lock.acquire() is False
    reception.heard(fetching("file", 1))
    # Nothing progresses, so the other gets the lock while we still want it.
    with (
        lock.waiting_for(reception),
        await asyncio.to_thread(holder, tree.lock_path("ab")) as other,
    ):
        assert not lock.is_held
        assert other.stdin is not None
        other.stdin.close()
    lock.release()


async def test_work_of_our_own_keeps_the_lock(base: Path) -> None:
    lock, reception = HubLock(CacheDir(base).hub_tree("org/model"), "ab", patience=0.0), Looked()
    assert await lock.acquire() is False
    reception.heard(fetching("file", TOTAL))  # all of it is here, and is being fsynced
    with lock.waiting_for(reception):
        await reception.enough.wait()
        assert lock.is_held
    lock.release()


class Trickle:
    """A Fetcher that has one file at once, and lets the other come a byte at each of its turns.

    Attributes:
        more: Released each time that LOOKS bytes have come since the first file is in staging.
        stops: To be set when no more of the other is to come.
    """

    def __init__(self, staging: Path) -> None:
        self.more = asyncio.Semaphore(0)
        self.stops = asyncio.Event()
        self._staging = staging
        self._is_there = False

    async def fetch(
        self, file: RemoteFile, *, priority: Priority, report: Callable[[int, int | None], None]
    ) -> Fetched:
        assert priority is Priority.BACKGROUND
        if "compression" in file.url:
            path = self._staging / "codec"
            path.write_bytes(b"codec")
            hashed = hash_stamped(path)
            self._is_there = True
            return Fetched(path, hashed.digests, hashed.stamp, None, 5, 0)
        since = 0
        for done in itertools.takewhile(lambda _: not self.stops.is_set(), itertools.count()):
            report(done, None)
            since += self._is_there
            if self._is_there and since % LOOKS == 0:
                self.more.release()
            await asyncio.sleep(0)
        await asyncio.Event().wait()
        raise AssertionError

    def hurry(self, key: str) -> None:
        raise AssertionError


def is_free(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True


async def test_a_file_that_is_whole_is_kept_for_the_other_while_that_comes(base: Path) -> None:
    cache = CacheDir(base)
    cache.create()
    trickle, source = Trickle(cache.staging), HubSource("org/model")
    files = tuple(
        DescribedFile(
            name,
            RemoteFile(source.shown, f"http://hub/{name}", Promise(size=5), etag * 64),
            HubBlob(source, etag * 64),
        )
        for name, etag in (("compression_state_dict.bin", "a"), ("state_dict.bin", "b"))
    )
    theirs = FileLock(cache.hub_tree("org/model").lock_path("a" * 64), thread_local=False)
    async with Store(cache) as store, Inspector() as inspector, asyncio.TaskGroup() as requests:
        acquirer = FileAcquirer(
            store=store,
            fetcher=trickle,
            inspections=CheckpointInspections(store, inspector),
            lock_patience=0.0,
        )

        async def obtain() -> None:
            progress = SourceProgress(source, lambda _: None)
            async with acquirer.hold(
                Description(source, files, "c" * 40), progress, inspected=False
            ):
                raise AssertionError  # the other file never ends

        request = requests.create_task(obtain())
        await trickle.more.acquire()
        while is_free(theirs):  # let go before bytes came, and taken again by a thread
            await trickle.more.acquire()
        await trickle.more.acquire()
        assert not is_free(theirs)
        trickle.stops.set()
        await asyncio.to_thread(theirs.acquire, timeout=PATIENCE_S)
        theirs.release()
        request.cancel()


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
