"""The daemon's own directories may go away under it: what happens then, place by place."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.daemon.admin import AdminClient
from craftcache.errors import CraftcacheError
from craftcached.database import Database, Pin
from craftcached.directory_monitor import DirectoryMonitor, MonitoredDirectory
from tests.support.appearing import until
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import OnDisk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub


def is_listening(path: Path, kind: int) -> bool:
    """Whether a connection to the Unix socket is not refused."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        return probe.connect_ex(os.fspath(path)) == 0


class Gone:
    """A place that is gone until it is healed, which may be impossible."""

    def __init__(self) -> None:
        self.is_there = False
        self.obstacle: Exception | None = None
        self.now = 0.0

    def is_gone(self) -> bool:
        return not self.is_there

    async def heal(self) -> None:
        if self.obstacle is not None:
            raise self.obstacle
        self.is_there = True

    def monitor(self) -> DirectoryMonitor:
        return DirectoryMonitor(
            [MonitoredDirectory("the attic", self.is_gone, self.heal)], clock=lambda: self.now
        )


async def test_what_is_gone_is_made_anew_once_whoever_removes_it_is_done() -> None:
    gone = Gone()
    monitor = gone.monitor()
    assert await monitor.problems() == ()
    assert not gone.is_there
    gone.now += 1.5
    assert await monitor.problems() == ()
    assert gone.is_there


@pytest.mark.parametrize("obstacle", [OSError(30, "Read-only"), CraftcacheError("it is another's")])
async def test_what_cannot_be_made_anew_is_named_until_it_can(obstacle: Exception) -> None:
    gone = Gone()
    gone.obstacle = obstacle
    monitor = gone.monitor()
    await monitor.problems()
    gone.now += 1.5
    (problem,) = await monitor.problems()
    assert problem.startswith("the attic cannot be used: ")
    gone.obstacle = None
    assert await monitor.problems() == ()
    assert gone.is_there


async def test_records_that_were_removed_are_put_back_with_what_they_held(tmp_path: Path) -> None:
    async with Database(tmp_path / "state") as records:
        await records.save_pin(Pin("key", "org/model", False, 1.0))
        assert not records.is_gone()
        shutil.rmtree(tmp_path / "state")
        assert records.is_gone()
        await records.heal()
        await records.save_pin(Pin("other", "org/other", False, 2.0))
    async with Database(tmp_path / "state") as records:
        assert {pin.key for pin in await records.pins()} == {"key", "other"}


@pytest.fixture
def url(threaded_hub: TestHub) -> str:
    """An export that is no part of the Hub."""
    threaded_hub.files |= {f"/m/{name}": OnDisk(path) for name, path in EXPORT_FILES.items()}
    return threaded_hub.cdn_url("/m/")


def doctor(daemon: DaemonProcess) -> tuple[int, list[dict[str, Any]]]:
    """Its exit status, and the problems that it names."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "craftcache.cli", "--socket-dir", str(daemon.socket_dir)),
            *("--cache-dir", str(daemon.cache_dir), "doctor", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ,
    )
    findings = json.loads(done.stdout)
    findings = findings if isinstance(findings, list) else findings["findings"]
    return done.returncode, [each for each in findings if each["state"] == "problem"]


@pytest.mark.parametrize("gone", ["all of it", "all in it", "staging", "blobs", "index"])
def test_a_cache_that_was_emptied_is_filled_again(
    daemon: DaemonProcess, export_repo: Repo, url: str, gone: str
) -> None:
    sources = (export_repo.repo_id, url)
    with daemon.client() as client:
        for source in sources:
            client.load(source)
        private = daemon.cache_dir / ".craftcache"
        shutil.rmtree(
            {"all of it": daemon.cache_dir, "all in it": daemon.cache_dir}.get(
                gone, private / {"blobs": "blobs/sha256"}.get(gone, gone)
            )
        )
        if gone == "all in it":
            daemon.cache_dir.mkdir()
        client.warm([url])
        assert {client.load(source).served_by for source in sources} == {"daemon"}


def test_a_cache_that_cannot_be_made_anew_is_named_and_healed_without_a_restart(
    daemon: DaemonProcess, url: str
) -> None:
    aside = daemon.cache_dir.with_name("aside")
    with daemon.client() as client:
        client.load(url)
        daemon.cache_dir.rename(aside)
        daemon.cache_dir.write_text("no directory")
        while not client.status().problems:
            pass
        status, problems = doctor(daemon)
        assert status == 1
        assert any("cache directory" in each["message"] for each in problems)
        daemon.cache_dir.unlink()
        aside.rename(daemon.cache_dir)
        assert client.status().problems == ()
        assert client.load(url).served_by == "daemon"


@pytest.mark.parametrize("name", ["staging", "stamps", "index", "blobs/sha256", "manifests"])
@pytest.mark.parametrize("by", ["a file", "a link that leads nowhere"])
def test_what_stands_in_a_directory_s_place_is_named_at_once(
    daemon: DaemonProcess, url: str, name: str, by: str
) -> None:
    place = daemon.cache_dir / ".craftcache" / name
    aside = daemon.cache_dir.with_name("aside")
    with daemon.client() as client:
        client.load(url)
        place.rename(aside)
        if by == "a file":
            place.touch()
        else:
            place.symlink_to("nowhere")
        assert [each for each in client.status().problems if str(place) in each]
        place.unlink()
        aside.rename(place)
        assert client.status().problems == ()
        assert client.load(url).served_by == "daemon"


def test_sockets_that_were_removed_are_made_anew(daemon: DaemonProcess, url: str) -> None:
    sockets = {
        daemon.socket_dir / "craftcache.sock": socket.SOCK_STREAM,
        daemon.socket_dir / "worker" / "handles.sock": socket.SOCK_SEQPACKET,
    }
    shutil.rmtree(daemon.socket_dir)
    until(lambda: all(path.exists() for path in sockets), below=daemon.socket_dir.parent)
    for path, kind in sockets.items():
        while not is_listening(path, kind):  # it is bound a moment before it listens
            pass
    with daemon.client() as client:
        assert client.load(url).served_by == "daemon"
        assert client.status().problems == ()
    assert AdminClient(daemon.socket_dir).watches().watches == ()
    assert daemon.terminate() == 0
    assert not (daemon.socket_dir / "craftcache.sock").exists()


def test_a_socket_that_another_file_stands_for_is_named(daemon: DaemonProcess) -> None:
    path = daemon.socket_dir / "craftcache.sock"
    path.unlink()
    path.write_text("no socket")
    with daemon.client() as client:
        while not client.status().problems:
            pass
        assert doctor(daemon)[0] == 1
        path.unlink()
        while client.status().problems:
            pass
    assert AdminClient(daemon.socket_dir).watches().watches == ()
