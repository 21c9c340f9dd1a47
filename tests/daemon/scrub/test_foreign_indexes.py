"""An index that was made of another file than the one whose digest it goes by is never kept."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import pytest
import torch

from craftcache import Client
from craftcache.cache.directory import CacheDir
from craftcache.cache.stamps import FileStamp
from craftcache.errors import IntegrityError
from craftcache.sources import FILENAMES, HubSource
from tests.support.api import Api
from tests.support.appearing import appeared
from tests.support.daemons import DaemonProcess
from tests.support.hub import Gate, Stall

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import Request, TestHub

SOURCE, LM = HubSource("org/model"), FILENAMES["lm"]


def checkpoint(large: str, small: str) -> bytes:
    """Two tensors whose names change places between two checkpoints of one size."""
    buffer = io.BytesIO()
    state = {large: torch.zeros(300_000), small: torch.ones(3)}
    torch.save({"best_state": state, "xp.cfg": f"large: {large}\n"}, buffer)
    return buffer.getvalue()


GOOD, FOREIGN = checkpoint("a", "b"), checkpoint("b", "a")


def put(content: bytes, path: Path) -> None:
    """Put another file in a file's place."""
    other = path.with_name("other")
    other.write_bytes(content)
    other.rename(path)


def assert_is_good(state: dict[str, Any]) -> None:
    assert state["xp.cfg"] == "large: a\n"
    assert {name: len(tensor) for name, tensor in state["best_state"].items()} == {
        "a": 300_000,
        "b": 3,
    }


def load_by_all(daemon: DaemonProcess) -> None:
    alone = Client(
        socket_dir=daemon.socket_dir / "none", cache_dir=daemon.cache_dir, fallback="cache"
    )
    with alone, daemon.client() as served:
        for client in (served, alone):
            assert_is_good(client.load(SOURCE.repo_id).lm)


@pytest.fixture
def hub(threaded_hub: TestHub) -> TestHub:
    assert len(GOOD) == len(FOREIGN)
    threaded_hub.repo(SOURCE.repo_id).commit(dict.fromkeys(FILENAMES.values(), GOOD))
    return threaded_hub


def is_later_range(request: Request) -> bool:
    return request.range is not None and not request.range.startswith("bytes=0-")


def test_of_a_file_that_took_the_place_of_a_download(base: Path, hub: TestHub) -> None:
    gate = Gate()
    hub.inject(Stall(gate), path=f"*{LM}", when=is_later_range, times=None)
    with DaemonProcess(base, HF_ENDPOINT=hub.endpoint, CRAFTCACHE_SCRUB_DAYS="0") as daemon:
        with Api(daemon.socket_dir) as api:
            assert api.warm(SOURCE.repo_id, wait=False).is_success
        staging = daemon.cache_dir / ".craftcache" / "staging" / "fetch"
        put(FOREIGN, appeared(staging, "*.part"))
        gate.open()
        with daemon.client() as client:
            for _ in range(2):  # whoever shares that download gets an error
                with contextlib.suppress(IntegrityError):
                    assert_is_good(client.load(SOURCE.repo_id).lm)
        load_by_all(daemon)


def test_of_a_wrong_file_that_was_believed_for_a_while(base: Path, hub: TestHub) -> None:
    with DaemonProcess(base, HF_ENDPOINT=hub.endpoint, CRAFTCACHE_SCRUB_DAYS="0") as daemon:
        with Api(daemon.socket_dir) as api:
            assert api.warm(SOURCE.repo_id).is_success
        daemon.terminate()
        cache = CacheDir(daemon.cache_dir)
        manifest = cache.manifest(SOURCE)
        assert manifest is not None
        record = manifest.file(LM)
        assert record is not None
        put(FOREIGN, cache.path(record))
        cache.stamps.record(record.sha256, FileStamp.of(cache.path(record).stat()))
        cache.index_path(record.sha256).unlink()
        daemon.start()
        with daemon.client() as client:  # its index is made anew, of what is there
            assert client.load(SOURCE.repo_id).lm["xp.cfg"] == "large: b\n"
        with Api(daemon.socket_dir) as api:
            assert api.request("POST", "/verify").json()["found"].get("mended")
        load_by_all(daemon)
        daemon.terminate()
        daemon.start()
        load_by_all(daemon)
