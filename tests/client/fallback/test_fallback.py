"""Whatever becomes of the daemon, a load returns the right tensors or the user's own error."""

from __future__ import annotations

import inspect
import logging
import os
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from craftcache import Client
from craftcache.cache.directory import CacheDir
from craftcache.cache.opened import OpenFile
from craftcache.daemon.admin import AdminClient
from craftcache.daemon.transport import Call
from craftcache.errors import (
    AccessDenied,
    CraftcacheError,
    IntegrityError,
    NotACheckpoint,
    NotFound,
    Offline,
    PolicyDenied,
    Unavailable,
    UnsafeCheckpoint,
)
from craftcache.loading.loader import Loader
from craftcache.sources import HubSource
from craftcache.watch_rule import WatchRule
from craftcache.wire import Hello, Load, Loaded, Problem, Status, Versions, Warm, encode
from tests.support.checkpoints import assert_same, saved
from tests.support.clients import expected
from tests.support.daemons import EXPORT, EXPORT_FILES, DaemonProcess
from tests.support.hub import FlipBit, Gate, Stall
from tests.support.sockets import ScriptedDaemon, file_info
from tests.support.sockets.scripted import hear_request, socket_path, wait_closed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from craftcache.wire import Progress
    from tests.support.hub import Repo, TestHub

PAIR = tuple(EXPORT_FILES)

SOON_S = 3.0
"""How long a warmed source may take with a daemon that does not answer."""


def ignore(_progress: Progress) -> None:
    """Nobody watches."""


@pytest.fixture
def silent_socket(base: Path) -> Iterator[Path]:
    """A socket that somebody listens on who never answers."""
    path = socket_path(base)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        yield path


# --- Silent, gone, restarted, broken ---


@contextmanager
def inspectors_killed(daemon: int) -> Iterator[list[int]]:
    """While it is entered, each process of the daemon's that inspects is killed; which, so far."""
    killed: list[int] = []
    done = threading.Event()

    def kill() -> None:
        while not done.is_set():
            for task in Path(f"/proc/{daemon}/task").glob("*/children"):
                with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                    for pid in map(int, task.read_text().split()):
                        command = Path(f"/proc/{pid}/cmdline").read_bytes()
                        if b"craftcached.inspect.forkserver" in command:
                            os.kill(pid, signal.SIGKILL)
                            killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        done.set()
        killer.join()


def test_an_inspector_that_is_always_killed_is_the_daemons_own_failure(
    base: Path, export_repo: Repo, hub_endpoint: str
) -> None:
    with (
        DaemonProcess(base, HF_ENDPOINT=hub_endpoint) as daemon,
        inspectors_killed(daemon.pid) as killed,
    ):
        export = daemon.client().load("org/model")
    assert killed
    assert export.served_by == "origin"
    assert_same(export.lm, expected("state_dict.bin"))


def test_a_watched_directory_that_the_daemon_fails_at_is_loaded_itself(
    base: Path, hub_endpoint: str
) -> None:
    directory = base / "run-export"
    shutil.copytree(EXPORT, directory)
    with DaemonProcess(base, HF_ENDPOINT=hub_endpoint) as daemon, daemon.client() as client:
        admin = AdminClient(daemon.socket_dir)
        with inspectors_killed(daemon.pid):
            admin.put_watch(WatchRule(name="run", directory=str(directory), settle=0.2))
            while "inspects" not in admin.watches().watches[0].detail:
                pass
            export = client.load(directory)
            with pytest.raises(
                Unavailable, match=r"only the daemon knows watches, and .* inspects"
            ):
                client.load("watch:run")
    assert export.served_by == "local"
    assert_same(export.lm, expected("state_dict.bin"))


def test_with_a_paused_daemon_a_warmed_source_loads_from_the_cache_soon(
    daemon: DaemonProcess, threaded_hub: TestHub, hub_endpoint: str
) -> None:
    with daemon.client() as client:
        client.warm("org/model")
        before = len(threaded_hub.requests)
        daemon.pause()
        started = time.monotonic()
        export = client.load("org/model")
        assert time.monotonic() - started < SOON_S
    assert export.served_by == "cache"
    assert "no word" in (export.fallback_reason or "")
    assert len(threaded_hub.requests) == before
    assert_same(export.lm, expected("state_dict.bin"))
    assert_same(export.compression, expected("compression_state_dict.bin"))


def test_a_socket_that_never_answers_costs_the_patience_and_no_more(
    base: Path, silent_socket: Path, export_repo: Repo, hub_endpoint: str
) -> None:
    loader = Loader(
        socket_dir=base / "run", cache_dir=base / "cache", fallback="origin", cold_seconds=0
    )
    with closing(loader):
        for served_by in ("origin", "cache"):
            with loader.open(HubSource("org/model"), PAIR, Call()) as opened:
                assert opened.served_by == served_by
                assert "no word" in (opened.fallback_reason or "")


def test_a_silent_daemon_is_waited_for_longer_where_only_the_origin_is_left() -> None:
    assert inspect.signature(Loader).parameters["cold_seconds"].default == 15


def test_a_cached_copy_shortens_the_wait_of_a_load_and_of_nothing_else(
    base: Path, export_repo: Repo, hub_endpoint: str
) -> None:
    loader = Loader(
        socket_dir=base / "run", cache_dir=base / "cache", fallback="origin", cold_seconds=15
    )
    source = HubSource("org/model")
    with closing(loader):
        assert loader.patience(Load(source)) == 15
        loader.open(source, PAIR, Call()).close()
        assert loader.patience(Load(source)) == 1
        assert loader.patience(Warm(source)) == 15, "of a warm"
        assert loader.patience(Status()) == 15, "of a status"


def test_a_request_survives_a_restart_of_the_daemon(
    daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate, after=1000), path="*/state_dict.bin", origin="cdn")
    with daemon.client() as client, ThreadPoolExecutor(1) as thread:
        loading = thread.submit(client.load, "org/model")
        gate.reached.wait_blocking()
        daemon.kill()
        daemon.start()
        gate.open()
        export = loading.result()
    assert export.served_by == "daemon"
    assert_same(export.lm, expected("state_dict.bin"))


def test_a_daemon_that_fails_by_its_own_fault_is_passed_by(
    daemon: DaemonProcess, base: Path, hub_endpoint: str
) -> None:
    staging = CacheDir(daemon.cache_dir).staging
    staging.rename(staging.with_name("gone"))
    staging.touch()
    client = Client(socket_dir=daemon.socket_dir, cache_dir=base / "mine")
    with client:
        export = client.load("org/model")
    assert export.served_by == "origin"
    assert "failed" in (export.fallback_reason or "")
    assert_same(export.lm, expected("state_dict.bin"))


FILE = OpenFile(file_info("state_dict.bin"), -1)


@pytest.mark.parametrize(
    "messages",
    [
        (encode(Hello(Versions(90, 99))),),
        (Hello(), Loaded("org/model", "r", (FILE,))),
        (Hello(), b"no message"),
        (Hello(), Problem(Unavailable("overloaded"), own_fault=True)),
    ],
    ids=["other versions", "other files", "nonsense", "own fault"],
)
def test_a_daemon_that_cannot_be_understood_is_passed_by(
    base: Path, export_repo: Repo, hub_endpoint: str, messages: tuple[Any, ...]
) -> None:
    def scene(daemon: ScriptedDaemon, connection: socket.socket) -> None:
        hear_request(connection)
        for message in messages:
            connection.send(message if isinstance(message, bytes) else encode(message))
        wait_closed(daemon, connection)

    client = Client(socket_dir=base / "run", cache_dir=base / "cache")
    with ScriptedDaemon(socket_path(base), scene), client:
        export = client.load("org/model")
    assert export.served_by == "origin"
    assert export.fallback_reason
    assert_same(export.lm, expected("state_dict.bin"))


# --- What a client may do without a daemon ---


@pytest.mark.parametrize(
    ("fallback", "cold", "warm"),
    [
        ("origin", "origin", "cache"),
        (True, "origin", "cache"),
        ("cache", Offline, "cache"),
        ("none", Unavailable, Unavailable),
        (False, Unavailable, Unavailable),
    ],
)
def test_a_fallback_does_what_it_is_called(
    base: Path, alone: Client, threaded_hub: TestHub, fallback: Any, cold: Any, warm: Any
) -> None:
    client = Client(socket_dir=base / "run", cache_dir=base / "other", fallback=fallback)
    warmed = Client(socket_dir=base / "run", cache_dir=base / "cache", fallback=fallback)
    alone.load("org/model")
    before = len(threaded_hub.requests)
    for wanted, loading in ((cold, client), (warm, warmed)):
        if isinstance(wanted, str):
            assert loading.load("org/model").served_by == wanted
        else:
            with pytest.raises(wanted) as caught:
                loading.load("org/model")
            assert caught.value.source == "org/model"
            assert caught.value.hint
    if cold != "origin":
        assert len(threaded_hub.requests) == before
        with pytest.raises(cold):
            client.warm("org/model")


def test_a_warm_without_a_refresh_asks_nobody_for_what_a_cache_has(
    alone: Client, threaded_hub: TestHub
) -> None:
    (fetched,) = alone.warm("org/model", refresh=False)
    assert fetched.served_by == "origin"
    before = len(threaded_hub.requests)
    (found,) = alone.warm("org/model", refresh=False)
    assert (found.served_by, found.revision) == ("cache", fetched.revision)
    assert (found.bytes_fetched, found.bytes_reused) == (0, fetched.bytes_fetched)
    assert len(threaded_hub.requests) == before


def test_another_fallback_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="fallback"):
        Client(fallback="orign")  # type: ignore[arg-type]


def test_offline_is_this_process_and_not_the_daemon(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with daemon.client() as client:
        assert client.load("org/model").served_by == "daemon"


def test_without_a_daemon_its_status_is_unavailable_and_models_are_the_caches(
    alone: Client,
) -> None:
    with pytest.raises(Unavailable) as caught:
        alone.status()
    assert "craftcached" in (caught.value.hint or "")
    assert alone.models() == []
    export = alone.load("org/model")
    (model,) = alone.models()
    assert (model.source, model.revision) == ("org/model", export.revision)
    assert {file.filename: file.size for file in model.files} == {
        name: path.stat().st_size for name, path in EXPORT_FILES.items()
    }


def test_it_warns_once_and_only_where_there_ought_to_be_a_daemon(
    alone: Client, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        alone.load("org/model")
        alone.load_state_dict("org/model", "state_dict.bin", cache_dir=alone.cache_dir)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()
    client = Client(cache_dir=base / "cache")
    if client.socket_dir is None:  # else this machine really has a daemon's sockets
        assert client.load("org/model").fallback_reason
        assert not caplog.records


# --- What is the user's to mend ---


class Gadget:
    """Its pickle runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_what_the_user_must_mend_is_raised_and_not_tried_another_way(
    base: Path, threaded_hub: TestHub, export_repo: Repo, hub_endpoint: str
) -> None:
    threaded_hub.repo("org/gadget").commit({"state_dict.bin": saved(Gadget())})
    threaded_hub.repo("org/garbage").commit({"state_dict.bin": b"garbage"})
    threaded_hub.repo("org/gated", gated=True).commit(EXPORT_FILES)
    threaded_hub.repo("org/flipped").commit(EXPORT_FILES)
    threaded_hub.repo("else/where").commit(EXPORT_FILES)
    flips = threaded_hub.inject(FlipBit(700), path="*/org/flipped/*", origin="cdn", times=None)
    cases: dict[str, type[CraftcacheError]] = {
        "org/missing": NotFound,
        "org/model@missing": NotFound,
        "org/gated": AccessDenied,
        "org/gadget": UnsafeCheckpoint,
        "org/garbage": NotACheckpoint,
        "org/flipped": IntegrityError,
        "else/where": PolicyDenied,
    }
    with (
        DaemonProcess(base, HF_ENDPOINT=hub_endpoint, CRAFTCACHE_ALLOW="org/*") as daemon,
        Client(socket_dir=daemon.socket_dir, cache_dir=base / "mine") as client,
    ):
        for source, error in cases.items():
            with pytest.raises(error) as caught:
                client.load(source, parts=("lm",))
            assert caught.value.source == source
            assert caught.value.hint
        with pytest.raises(NotFound, match="no file"):
            client.load_state_dict("org/model", "missing.bin")
        with pytest.raises(NotFound):
            client.warm(["org/missing", "org/model"])
        assert client.load("org/model").served_by == "daemon"
    assert not (base / "mine").exists()
    assert threaded_hub.count("GET", "*/org/gadget/*", origin="cdn") == 1
    assert threaded_hub.count("GET", "*/org/garbage/*", origin="cdn") == 1
    assert threaded_hub.count(None, "/else/*") == 0
    flips.cancel()
    assert not os.listdir(CacheDir(daemon.cache_dir).staging / "fetch")
