"""Weights in single precision, made once and shared by all workers that ask for them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from craftcache.daemon.transport import Cancellation
from craftcache.errors import CraftcacheError, NotACheckpoint, StorageFull, Unavailable
from craftcache.loading.operations import Operations
from craftcached.inspect import Inspector
from craftcached.warm.casts import Casts
from tests.support.checkpoints import saved
from tests.support.daemons import DaemonProcess
from tests.support.published import keeping

if TYPE_CHECKING:
    from tests.support.api import Api
    from tests.support.hub import TestHub

SOURCE = "org/half"
LM, CODEC = "state_dict.bin", "compression_state_dict.bin"
HALF = {"weight": torch.randn(64, 32).half(), "count": torch.arange(3)}
WORKERS = 8


@pytest.fixture(autouse=True)
def half(threaded_hub: TestHub) -> None:
    """A repository of half-precision weights."""
    single = {"best_state": {"weight": torch.randn(8)}}
    threaded_hub.repo(SOURCE).commit({LM: saved({"best_state": HALF}), CODEC: saved(single)})


def load(daemon: DaemonProcess, filename: str = LM, *, cast: str | None = "float32") -> Any:
    """The state dict as a worker of its own gets it."""
    worker = Operations(socket_dir=daemon.socket_dir, cache_dir=daemon.cache_dir, fallback="none")
    checkpoint = worker.load_state_dict(
        SOURCE, filename, "cpu", None, cancellation=Cancellation(), cast=cast
    )
    worker.close()
    return checkpoint["best_state"]


def casts(daemon: DaemonProcess) -> list[Path]:
    """The casts that the cache holds."""
    return [path for path in daemon.cache_dir.glob(".craftcache/casts/*") if path.suffix != ".json"]


def assert_cast(state: Any) -> None:
    assert state["weight"].dtype is torch.float32
    assert torch.equal(state["weight"], HALF["weight"].float())
    assert torch.equal(state["count"], HALF["count"])


def test_many_workers_share_one(daemon: DaemonProcess) -> None:
    with ThreadPoolExecutor(WORKERS) as threads:
        states = list(threads.map(lambda _: load(daemon), range(WORKERS)))
    for state in states:
        assert_cast(state)
    (path,) = casts(daemon)
    assert path.stat().st_mode & 0o777 == 0o444
    assert daemon.log.count("to float32") == 1
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert sum(line.endswith(str(path.resolve())) for line in maps) >= WORKERS


def test_it_outlives_the_daemon(daemon: DaemonProcess) -> None:
    load(daemon)
    daemon.terminate()
    daemon.start()
    assert_cast(load(daemon))
    assert daemon.log.count("to float32") == 1


def test_who_does_not_ask_gets_the_file_as_it_is(daemon: DaemonProcess) -> None:
    load(daemon)
    state = load(daemon, cast=None)
    assert torch.equal(state["weight"], HALF["weight"])
    assert state["weight"].dtype is torch.float16


@pytest.mark.parametrize(
    ("filename", "cast"), [(CODEC, "float32"), (LM, "float64"), (LM, "../../x")]
)
def test_what_cannot_be_had_comes_as_it_is(daemon: DaemonProcess, filename: str, cast: str) -> None:
    state = load(daemon, filename, cast=cast)
    assert state["weight"].dtype is (torch.float32 if filename == CODEC else torch.float16)
    assert casts(daemon) == []


def test_one_that_is_not_whole_is_made_again(daemon: DaemonProcess) -> None:
    load(daemon)
    (path,) = casts(daemon)
    Path(f"{path}.json").unlink()
    assert_cast(load(daemon))
    assert daemon.log.count("to float32") == 2


def test_it_goes_with_its_model(api: Api, daemon: DaemonProcess) -> None:
    state = load(daemon)
    original, (path,) = load(daemon, cast=None), casts(daemon)
    size = path.stat().st_size
    freed = api.delete(SOURCE).json()["freed_bytes"]
    assert casts(daemon) == []
    assert freed > size
    assert_cast(state)
    assert torch.equal(original["weight"], HALF["weight"])


def test_it_stays_while_another_model_has_the_same_file(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("org/same").commit({LM: saved({"best_state": HALF}), CODEC: saved({})})
    api.warm("org/same")
    load(daemon)
    api.delete(SOURCE)
    assert len(casts(daemon)) == 1
    api.delete("org/same")
    assert casts(daemon) == []


def test_it_counts_when_room_is_made(api: Api, daemon: DaemonProcess) -> None:
    load(daemon)
    size = sum(path.stat().st_size for path in casts(daemon))
    evicted = api.request("POST", "/evict", json={"bytes": 1}).json()
    assert evicted["removed"] == [SOURCE]
    assert evicted["freed_bytes"] > size > 0
    assert casts(daemon) == []


class Refusing(Inspector):
    """Casts nothing."""

    def __init__(self, error: CraftcacheError) -> None:
        super().__init__()
        self.error = error
        self.asked = 0

    async def cast(self, path: Path, output: int, dtype: str, *, source: str) -> bytes:
        self.asked += 1
        raise self.error


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (NotACheckpoint("it takes more computing than any checkpoint needs"), 1),
        (Unavailable("its inspection was killed"), 2),
        (StorageFull("no room"), 2),
    ],
)
async def test_the_next_load_tries_again_only_what_may_pass(
    tmp_path: Path, error: CraftcacheError, asked: int
) -> None:
    async with keeping(tmp_path) as parts:
        (record,) = (await parts.publish("model", file=b"half")).files
        inspector = Refusing(error)
        casts = Casts(parts.store, inspector)
        assert not await casts.settle(record, "float32", lambda _: None, source=SOURCE)
        await casts.settle(record, "float32", lambda _: None, source=SOURCE)
        assert inspector.asked == asked
        assert list(parts.store.cache.staging.iterdir()) == []


def test_it_counts_as_cached(daemon: DaemonProcess) -> None:
    with daemon.client() as client:
        load(daemon, cast=None)
        before = client.status()["bytes"]
        load(daemon)
        grown = client.status()["bytes"] - before
    assert grown >= sum(path.stat().st_size for path in casts(daemon)) > 0


def test_no_model_is_cast_that_would_be_evicted_for_it(base: Path, threaded_hub: TestHub) -> None:
    size = len(saved({"best_state": HALF}))
    environment = {"HF_ENDPOINT": threaded_hub.endpoint, "CRAFTCACHE_MAX_BYTES": str(2 * size)}
    with DaemonProcess(base, **environment) as daemon:
        assert load(daemon)["weight"].dtype is torch.float16
        assert casts(daemon) == []
        assert "no room for both" in daemon.log
