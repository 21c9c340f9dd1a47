"""The daemon's life: it starts clearly or says why not, and stops at any moment without a trace."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.api import Api
from tests.support.daemons import DaemonProcess
from tests.support.hub import Data, Gate, Stall
from tests.support.pickles import Op, archive

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import Repo, TestHub


def descendants(pid: int) -> set[int]:
    """The processes below ``pid``, itself left out."""
    children: dict[int, set[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, set()).add(int(name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), set()) - found:
            found.add(child)
            waiting.append(child)
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that still run."""
    return {pid for pid in pids if os.path.exists(f"/proc/{pid}/cmdline") and _runs(pid)}


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def sockets(daemon: DaemonProcess) -> list[str]:
    return [path.name for path in daemon.socket_dir.rglob("*.sock")]


def test_it_stops_on_a_signal_and_leaves_no_socket(api: Api, daemon: DaemonProcess) -> None:
    assert set(sockets(daemon)) == {"craftcache.sock", "handles.sock"}
    assert daemon.terminate() == 0
    assert sockets(daemon) == []
    assert "received SIGTERM" in daemon.log


def test_it_stops_under_load_and_leaves_no_process(
    inspected: Path, threaded_hub: TestHub, export_repo: Repo
) -> None:
    slow = archive(Op.whole(b"N", b"q\x00" * 7_900_000))  # so that one is inspected meanwhile
    threaded_hub.files["/inspected.th"] = Data(slow)
    with (
        DaemonProcess(
            inspected, HF_ENDPOINT=threaded_hub.endpoint, CRAFTCACHE_DRAIN_SECONDS="0.1"
        ) as daemon,
        Api(daemon.socket_dir) as api,
    ):
        assert api.warm("org/model").status_code == 200
        assert api.warm(threaded_hub.cdn_url("/inspected.th"), wait=False).status_code == 202
        while not (below := descendants(daemon.pid)):
            assert alive({daemon.pid})
        gate = Gate()
        threaded_hub.inject(Stall(gate), path="/slow*", origin="cdn", times=None)
        urls = [threaded_hub.cdn_url(f"/slow-{number}.th") for number in range(20)]
        assert api.warm(*urls, "org/other", wait=False).status_code == 202
        gate.reached.wait_blocking()
        assert alive(below) == below
        assert daemon.terminate() == 0
        assert alive(below) == set()
        assert sockets(daemon) == []
        gate.open()


def test_a_second_signal_does_not_spoil_the_end(
    daemon: DaemonProcess, api: Api, threaded_hub: TestHub
) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate), path="*", method="HEAD", origin="hub", times=None)
    api.warm("org/model", wait=False)
    gate.reached.wait_blocking()
    os.kill(daemon.pid, signal.SIGTERM)
    os.kill(daemon.pid, signal.SIGINT)
    gate.open()
    assert daemon.wait() == 0
    assert sockets(daemon) == []


def test_a_running_request_is_answered_before_the_end(
    daemon: DaemonProcess, api: Api, threaded_hub: TestHub
) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate), path="*", method="HEAD", origin="hub")
    with api.warming("org/model") as lines:
        gate.reached.wait_blocking()
        os.kill(daemon.pid, signal.SIGTERM)
        gate.open()
        *_, last = lines
    assert last["event"] == "result"
    assert daemon.wait() == 0


@pytest.mark.parametrize(
    "made",
    [
        "cache/.craftcache/staging",
        "cache/.craftcache/daemon.lock",
        "state/craftcached.sqlite",
        "cache/.craftcache/staging/fetch",
        "run",
        "run/worker/handles.sock",
        "run/craftcache.sock",
    ],
)
def test_a_signal_at_any_moment_of_the_start_ends_it(
    base: Path, threaded_hub: TestHub, made: str
) -> None:
    daemon = DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint)
    daemon.spawn()
    try:
        while not (base / made).exists():
            pass  # the start takes a second, and this moment of it a few microseconds
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.wait() == 0
        assert sockets(daemon) == []
    finally:
        daemon.__exit__()


def test_a_killed_daemons_sockets_are_taken_over(api: Api, daemon: DaemonProcess) -> None:
    daemon.kill()
    assert len(sockets(daemon)) == 2
    daemon.start()
    with Api(daemon.socket_dir) as fresh:
        assert fresh.get("/health") == {"status": "ok"}


def refusal(base: Path, *arguments: str, **environment: str) -> str:
    """What a daemon says that does not start."""
    command = [sys.executable, "-m", "craftcached", *arguments]
    directories = {
        "CRAFTCACHE_CACHE_DIR": str(base / "cache"),
        "CRAFTCACHE_SOCKET_DIR": str(base / "run"),
        "CRAFTCACHE_STATE_DIR": str(base / "state"),
    }
    run = subprocess.run(
        command,
        env=os.environ | directories | environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr


def test_a_second_daemon_on_the_same_cache_is_refused(
    daemon: DaemonProcess, inspected: Path, api: Api
) -> None:
    said = refusal(
        inspected,
        CRAFTCACHE_SOCKET_DIR=str(inspected / "run2"),
        CRAFTCACHE_STATE_DIR=str(inspected / "state2"),
    )
    assert str(daemon.cache_dir) in said
    assert str(daemon.pid) in said
    assert api.get("/health") == {"status": "ok"}


def test_a_second_daemon_on_the_same_sockets_is_refused(
    daemon: DaemonProcess, inspected: Path, api: Api
) -> None:
    said = refusal(
        inspected,
        CRAFTCACHE_CACHE_DIR=str(inspected / "cache2"),
        CRAFTCACHE_STATE_DIR=str(inspected / "state2"),
    )
    assert str(daemon.socket_dir) in said
    assert api.get("/health") == {"status": "ok"}
    with daemon.client() as client:
        assert client.status()["pid"] == daemon.pid


@pytest.mark.parametrize("setting", ["CACHE_DIR", "STATE_DIR", "SOCKET_DIR"])
@pytest.mark.parametrize("kind", ["a file", "read-only"])
def test_a_directory_that_cannot_be_written_is_named(base: Path, setting: str, kind: str) -> None:
    place = base / "place"
    if kind == "a file":
        place.write_bytes(b"")
    else:
        place = type(base)("/proc/1/nowhere")
    said = refusal(base, **{f"CRAFTCACHE_{setting}": str(place / "below")})
    assert str(place) in said
    assert setting.lower() in said


def test_a_socket_path_that_is_too_long_is_named(base: Path) -> None:
    said = refusal(base, CRAFTCACHE_SOCKET_DIR=str(base / ("x" * 100)))
    assert "107 bytes" in said
    assert "socket_dir" in said


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("CRAFTCACHE_MAX_CONNECTIONS", "many", "a whole number"),
        ("CRAFTCACHE_MAX_CONNECTIONS", "0", "at least 1"),
        ("CRAFTCACHE_DRAIN_SECONDS", "-1", "at least 0"),
        ("CRAFTCACHE_ADMIN_SOCKET_MODE", "rw", "a whole number"),
        ("CRAFTCACHE_NO_SUCH", "1", "unknown setting"),
    ],
)
def test_a_bad_setting_is_named(base: Path, variable: str, value: str, words: str) -> None:
    said = refusal(base, **{variable: value})
    assert variable in said
    assert words in said


def test_broken_records_are_set_aside(base: Path, threaded_hub: TestHub) -> None:
    (base / "state").mkdir()
    (base / "state/craftcached.sqlite").write_bytes(b"no database" * 1000)
    with (
        DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as daemon,
        Api(daemon.socket_dir) as api,
    ):
        assert api.get("/health") == {"status": "ok"}
        assert daemon.terminate() == 0
    with sqlite3.connect(base / "state/craftcached.sqlite") as records:
        assert records.execute("SELECT * FROM warm_jobs").fetchall() == []


def test_what_a_killed_daemon_left_half_written_is_cleared(
    inspected: Path, threaded_hub: TestHub
) -> None:
    staging = inspected / "cache/.craftcache/staging"
    staging.mkdir()
    old, new = staging / "4242-0123456789abcdef.tmp", staging / "4243-0123456789abcdef.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    with DaemonProcess(inspected, HF_ENDPOINT=threaded_hub.endpoint):
        assert not old.exists()
        assert new.exists()  # maybe of a worker that fetches by itself at this moment


def test_modes_of_sockets_and_private_files(api: Api, daemon: DaemonProcess) -> None:
    api.warm("org/model", wait=False)
    modes = {
        path.name: oct(stat.S_IMODE(path.stat().st_mode))
        for path in (
            *daemon.socket_dir.rglob("*.sock"),
            *daemon.state_dir.iterdir(),
            daemon.state_dir,
            daemon.cache_dir / ".craftcache/staging",
        )
    }
    assert modes["handles.sock"] == "0o666"
    assert modes["craftcache.sock"] == "0o660"
    assert modes["craftcached.sqlite"] == "0o600"
    assert modes["craftcached.sqlite-wal"] == "0o600"
    assert modes["state"] == "0o700"


def test_a_client_that_says_nothing_does_not_hold_it_up(api: Api, daemon: DaemonProcess) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(daemon.socket_dir / "craftcache.sock"))
        assert api.get("/health") == {"status": "ok"}
        assert daemon.terminate() == 0
