"""The disk of the daemon's own records is full: what was only noted there fails nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from craftcache.daemon.admin import AdminClient
from craftcache.errors import StorageFull
from tests.support.clients import as_root
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import OnDisk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.hub import TestHub


@pytest.fixture
def daemon(base: Path, threaded_hub: TestHub) -> Iterator[DaemonProcess]:
    """A daemon whose records are on a disk of their own, which soon is full."""
    for name in "ab":
        threaded_hub.files |= {
            f"/{name}/{file}": OnDisk(path) for file, path in EXPORT_FILES.items()
        }
    (base / "state").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(base / "state")]
    subprocess.run(mount, check=True)
    try:
        with DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as running:
            yield running
    finally:
        subprocess.run(["umount", str(base / "state")], check=True)


def fill(directory: Path) -> Path:
    filler = directory / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))
    return filler


def reported(daemon: DaemonProcess) -> tuple[int, list[str]]:
    """The doctor's exit status, and what it has of the daemon's own report."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "craftcache.cli", "--socket-dir", str(daemon.socket_dir)),
            *("--cache-dir", str(daemon.cache_dir), "doctor", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    findings = json.loads(done.stdout)
    findings = findings if isinstance(findings, list) else findings["findings"]
    return done.returncode, [
        each["message"] for each in findings if each["check"] == "what the daemon reports"
    ]


@as_root
def test_models_come_and_are_served_and_the_doctor_names_it(
    daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    first, second = (threaded_hub.cdn_url(f"/{name}/") for name in "ab")
    admin = AdminClient(daemon.socket_dir)
    with daemon.client() as client:
        client.load(first)
        filler = fill(daemon.state_dir)
        asked = len(threaded_hub.requests)
        assert client.warm(second)[0].served_by == "daemon"
        fetched = len(threaded_hub.requests)
        assert fetched > asked
        assert client.load(second).served_by == "daemon"
        assert len(threaded_hub.requests) == fetched  # and nobody brought it once more
        with pytest.raises(StorageFull, match=str(daemon.state_dir)):
            admin.pin(second)
        while not client.status().problems:
            pass
        status, (problem,) = reported(daemon)
        assert status == 1
        assert str(daemon.state_dir) in problem
        filler.unlink()
        admin.pin(second)
        while client.status().problems:
            pass
    assert "Traceback" not in daemon.log
