"""When main moves: whoever reads without the daemon sees the old pair or the new one, always."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx
import pytest
import torch
from huggingface_hub import hf_hub_download
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from craftcache import Client
from craftcache.digests import hash_file
from craftcached.inspect import Inspector
from tests.support.api import Api
from tests.support.checkpoints import saved
from tests.support.hub import CloseEarly, Gate, Stall, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

VERSIONS = 16
"""More than an update has steps."""

LM, CODEC = "state_dict.bin", "compression_state_dict.bin"


@dataclass(frozen=True)
class Version:
    """One state of a repository: a pair whose halves carry the same number."""

    number: int

    @property
    def files(self) -> dict[str, bytes]:
        numbered = {"number": self.number}
        return {
            LM: saved(numbered | {"best_state": torch.full((4096,), self.number)}),
            CODEC: saved(numbered),
        }


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The indexes of all versions, so that no start of a daemon waits for torch."""
    path = tmp_path_factory.mktemp("versions") / "checkpoint"

    async def inspect() -> dict[str, bytes]:
        found = {}
        async with Inspector() as inspector:
            for number in range(VERSIONS):
                for content in Version(number).files.values():
                    path.write_bytes(content)
                    found[hash_file(path).sha256] = await inspector.inspect(path, source="version")
        return found

    return asyncio.run(inspect())


@pytest.fixture
def versioned(daemon: DaemonProcess, export_repo: Repo, indexes: dict[str, bytes]) -> DaemonProcess:
    """A daemon that has warmed the first version of org/model."""
    for sha256, index in indexes.items():
        (daemon.cache_dir / f".craftcache/index/{sha256}.json").write_bytes(index)
    export_repo.commit(Version(0).files)
    with Api(daemon.socket_dir) as api:
        assert api.warm("org/model").status_code == 200
    return daemon


class Readers:
    """Two who read the pair without daemon and network, as often as they can; a context manager.

    Leaving it fails if either of them ever met a failure, or halves of two versions.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(2)
        self.seen: set[int] = set()

    def __enter__(self) -> Self:
        self._loops = [
            self._threads.submit(self._read_until_stopped, read)
            for read in (self._read_as_audiocraft_does, self._read_as_a_worker_does)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._threads.shutdown()
        for loop in self._loops:
            loop.result()

    def read(self) -> set[int]:
        """What both of them see now."""
        return {self._read_as_audiocraft_does(), self._read_as_a_worker_does()}

    def _read_until_stopped(self, read: Callable[[], int]) -> None:
        while not self._stop.is_set():
            self.seen.add(read())

    def _read_as_audiocraft_does(self) -> int:
        while True:
            paths = [
                Path(
                    hf_hub_download(
                        "org/model", n, cache_dir=self._cache_dir, local_files_only=True
                    )
                )
                for n in (LM, CODEC)
            ]
            if paths[0].parent == paths[1].parent:  # else main moved between the two calls
                break
        lm, codec = (torch.load(path, weights_only=True)["number"] for path in paths)
        assert lm == codec
        return int(lm)

    def _download(self, name: str) -> str:
        return hf_hub_download("org/model", name, cache_dir=self._cache_dir, local_files_only=True)

    def _read_as_a_worker_does(self) -> int:
        client = Client(
            socket_dir=self._cache_dir / "nothing", cache_dir=self._cache_dir, fallback="cache"
        )
        export = client.load("org/model")
        assert export.lm["number"] == export.compression["number"]
        assert bool((export.lm["best_state"] == export.lm["number"]).all())
        return int(export.lm["number"])


class KillAt(FileSystemEventHandler):
    """Kills a daemon at the ``count``-th change of what readers may see."""

    def __init__(self, daemon: DaemonProcess, count: int) -> None:
        self._daemon = daemon
        self._left = count

    @property
    def has_killed(self) -> bool:
        """Whether there were as many changes."""
        return self._left <= 0

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in ("created", "moved", "deleted", "modified"):
            self._left -= 1
            if self._left == 0:
                self._daemon.kill()


@contextlib.contextmanager
def killing(daemon: DaemonProcess, count: int) -> Iterator[KillAt]:
    observer = Observer()
    handler = KillAt(daemon, count)
    for path in ("models--org--model", ".craftcache/manifests"):
        observer.schedule(handler, str(daemon.cache_dir / path), recursive=True)
    observer.start()
    try:
        yield handler
    finally:
        observer.stop()
        observer.join()


def is_warmed(daemon: DaemonProcess) -> bool:
    """Whether a warm succeeds, or the daemon dies of it."""
    with Api(daemon.socket_dir) as api:
        try:
            return api.warm("org/model").status_code == 200
        except httpx.TransportError:
            return False


STEPS = 14
"""Changes that readers may see in an update, at least: of blobs, links, the manifest, the ref."""


@pytest.mark.timeout(300)  # as many starts of a daemon as an update has steps
def test_a_kill_at_every_step_of_an_update_leaves_a_whole_pair(
    versioned: DaemonProcess, export_repo: Repo
) -> None:
    kills = 0
    with Readers(versioned.cache_dir) as readers:
        for number in range(1, STEPS + 1):
            export_repo.commit(Version(number).files)
            with killing(versioned, number) as killer:
                is_warmed(versioned)
            if killer.has_killed:
                kills += 1
                versioned.start()
    assert kills > STEPS // 2  # the last ones may come when all is done
    assert readers.seen <= set(range(STEPS + 1))
    assert is_warmed(versioned)
    assert readers.read() == {STEPS}


HALFWAY = {
    "before the hub names a commit": ("*/resolve/main/*", "HEAD", None),
    "before it describes the second file": (f"*/{CODEC}", "HEAD", None),
    "before the first byte": (f"*/{LM}", "GET", None),
    "in the middle of a file": (f"*/{LM}", "GET", 9000),
    "with one file whole": (f"*/{CODEC}", "GET", None),
}


@pytest.mark.parametrize("halfway", HALFWAY.values(), ids=HALFWAY)
def test_a_kill_while_an_update_is_fetched_leaves_the_old_pair(
    versioned: DaemonProcess,
    threaded_hub: TestHub,
    export_repo: Repo,
    halfway: tuple[str, str, int | None],
) -> None:
    path, method, after = halfway
    gate = Gate()
    threaded_hub.inject(Stall(gate, after=after), path=path, method=method, times=None)
    export_repo.commit(Version(1).files)
    with Readers(versioned.cache_dir) as readers, ThreadPoolExecutor(1) as thread:
        warming = thread.submit(is_warmed, versioned)
        gate.reached.wait_blocking()
        versioned.kill()
        assert not warming.result()
        gate.open()
    assert readers.seen == {0}
    versioned.start()
    assert is_warmed(versioned)
    with versioned.client() as client:
        assert client.load("org/model").lm["number"] == 1


def test_an_update_that_fails_leaves_the_old_pair(
    versioned: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    for fault in (Status(404), CloseEarly(100)):
        threaded_hub.inject(fault, path=f"*/{CODEC}", origin="cdn", times=None)
        export_repo.commit(Version(1).files)
        with Readers(versioned.cache_dir) as readers:
            assert not is_warmed(versioned)
        assert readers.seen == {0}


def test_a_load_goes_on_with_the_old_pair_while_the_new_one_comes(
    versioned: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate), path=f"*/{LM}", method="GET")
    export_repo.commit(Version(1).files)
    with ThreadPoolExecutor(1) as thread, versioned.client() as client:
        warming = thread.submit(is_warmed, versioned)
        gate.reached.wait_blocking()
        export = client.load("org/model")
        assert (export.served_by, export.lm["number"]) == ("daemon", 0)
        gate.open()
        assert warming.result()
        assert client.load("org/model").lm["number"] == 1
