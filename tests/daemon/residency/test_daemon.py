"""Residency, pins and eviction as people and programs ask for them, of a real daemon."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from craftcache.daemon.admin import AdminClient
from craftcache.daemon.administration import Eviction
from craftcache.errors import NotFound, PolicyDenied
from craftcached.residency.page_cache import resident_bytes
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import Gate, Stall

if TYPE_CHECKING:
    from craftcache.wire import Progress
    from tests.support.hub import Repo, TestHub

CRAFTCACHE = Path(sys.executable).with_name("craftcache")
SIZE = sum(path.stat().st_size for path in EXPORT_FILES.values())
NOBODY = 65534


def blobs(daemon: DaemonProcess) -> list[Path]:
    return sorted(daemon.cache_dir.glob("models--*/blobs/*"))


def drop_from_memory(daemon: DaemonProcess) -> None:
    """Have the kernel forget the blobs; skips the test where it does not."""
    for path in blobs(daemon):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if resident_bytes(file.fileno()) != 0:
                pytest.skip("this file system keeps its files in memory")


def cli(daemon: DaemonProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(CRAFTCACHE), "--socket-dir", str(daemon.socket_dir), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def cli_json(daemon: DaemonProcess, *arguments: str) -> Any:
    done = cli(daemon, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_resident_warm_brings_the_model_into_memory(daemon: DaemonProcess) -> None:
    steps: list[Progress] = []
    with daemon.client() as client:
        client.warm("org/model")
        drop_from_memory(daemon)
        [cold] = client.models()
        [without] = client.warm("org/model")
        [still_cold] = client.models()
        [warmed] = client.warm("org/model", resident=True, on_progress=steps.append)
        [hot] = client.models()
        total = client.status().resident_bytes
    assert (cold.resident_bytes, still_cold.resident_bytes) == (0, 0)
    assert without.resident_bytes is None
    assert warmed.resident_bytes == hot.resident_bytes == total == SIZE
    read = {step.file: step.total for step in steps if step.state == "reading"}
    assert read == {name: path.stat().st_size for name, path in EXPORT_FILES.items()}


def test_how_much_is_in_memory_is_shown(daemon: DaemonProcess) -> None:
    done = cli(daemon, "warm", "--resident", "org/model")
    assert done.stdout.splitlines()[-1] == "org/model: 2.2 MB of 2.2 MB in memory"
    [listed] = cli_json(daemon, "ls")["models"]
    assert listed["resident_bytes"] == SIZE
    assert cli_json(daemon, "show", "org/model") == listed
    assert cli_json(daemon, "status")["resident_bytes"] == SIZE
    drop_from_memory(daemon)
    assert cli_json(daemon, "status")["resident_bytes"] == 0
    assert cli(daemon, "warm", "--resident", "--check", "org/model").returncode == 2


def test_a_pinned_model_is_neither_removed_nor_evicted_until_it_is_unpinned(
    daemon: DaemonProcess,
) -> None:
    admin = AdminClient(daemon.socket_dir)
    with pytest.raises(NotFound, match="not in the cache"):
        admin.pin("org/model")
    with daemon.client() as client:
        client.warm("org/model")
        admin.pin("org/model", lock=True)
        assert daemon.terminate() == 0
        daemon.start()
        with pytest.raises(PolicyDenied, match=r"it is pinned.*craftcache unpin org/model"):
            admin.remove("org/model")
        eviction = admin.evict(1)
        assert (eviction.removed, eviction.missing_bytes) == ((), 1)
        assert [(kept.source, kept.reason) for kept in eviction.kept] == [("org/model", "pinned")]
        [model] = client.models()
        assert (model.is_pinned, model.is_locked) == (True, True)
        admin.pin("org/model")
        [model] = client.models()
        assert (model.is_pinned, model.is_locked) == (True, False)
        admin.unpin("org/model")
        with pytest.raises(NotFound, match="not pinned"):
            admin.unpin("org/model")
        assert admin.evict(1) == Eviction(("org/model",), SIZE, 0, ())
        assert client.models() == []


def test_pin_and_evict_on_the_command_line(daemon: DaemonProcess) -> None:
    with daemon.client() as client:
        client.warm("org/model")
    assert cli_json(daemon, "pin", "org/model") == {
        "source": "org/model",
        "pinned": True,
        "locked": False,
        "expires_at": None,
    }
    refused = cli(daemon, "evict", "--bytes", "1MB")
    assert refused.returncode == 1
    assert "org/model: pinned" in refused.stderr
    assert cli(daemon, "ls").stdout.splitlines()[1].endswith("yes")
    assert cli(daemon, "unpin", "org/model").stdout == "org/model: no longer pinned\n"
    would = cli(daemon, "evict", "--bytes", "1MB", "--dry-run")
    assert would.stdout == "org/model: would be removed\n2.2 MB would be freed\n"
    assert cli_json(daemon, "evict", "--bytes", "1MB")["removed"] == ["org/model"]
    assert cli(daemon, "evict").stdout == "0 bytes freed\n"
    assert cli(daemon, "evict", "--bytes", "many").returncode == 2


def test_the_limit_is_kept_by_the_daemon_itself(
    base: Path, threaded_hub: TestHub, export_repo: Repo
) -> None:
    other = io.BytesIO()
    torch.save({"best_state": {"weight": torch.arange(1000)}}, other)
    threaded_hub.repo("org/other").commit({**EXPORT_FILES, "state_dict.bin": other.getvalue()})
    with (
        DaemonProcess(base, "--max-bytes", str(SIZE), HF_ENDPOINT=threaded_hub.endpoint) as daemon,
        daemon.client() as client,
    ):
        admin = AdminClient(daemon.socket_dir)
        client.warm("org/model")
        client.warm("org/other")
        # Room was made for the second before its first byte.
        assert [model.source for model in client.models()] == ["org/other"]
        assert admin.evict(None, dry_run=True).removed == ()


def test_a_model_is_not_evicted_while_another_takes_over_its_files(
    daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    other = io.BytesIO()
    torch.save({"best_state": {"weight": torch.arange(1000)}}, other)
    threaded_hub.repo("org/other").commit({**EXPORT_FILES, "state_dict.bin": other.getvalue()})
    admin = AdminClient(daemon.socket_dir)
    gate = Gate()
    with daemon.client() as client, ThreadPoolExecutor(1) as thread:
        client.warm("org/model")
        threaded_hub.inject(Stall(gate, after=100), path="*/state_dict.bin", origin="cdn")
        warming = thread.submit(client.warm, "org/other")
        gate.reached.wait_blocking()
        eviction = admin.evict(1)
        gate.open()
        [warmed] = warming.result()
        export = client.load("org/other")
    assert warmed.bytes_fetched == len(other.getvalue())
    assert [(kept.source, kept.reason) for kept in eviction.kept] == [("org/model", "in use")]
    assert torch.equal(export.lm["best_state"]["weight"], torch.arange(1000))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_is_no_administrator_may_neither_pin_nor_evict(
    base: Path, threaded_hub: TestHub, export_repo: Repo
) -> None:
    base.chmod(0o755)
    environment = {"HF_ENDPOINT": threaded_hub.endpoint, "CRAFTCACHE_ADMIN_SOCKET_MODE": "666"}
    with DaemonProcess(base, **environment) as daemon, daemon.client() as client:
        client.warm("org/model")
        admin = AdminClient(daemon.socket_dir)
        os.seteuid(NOBODY)
        try:
            for attempt in (
                lambda: admin.pin("org/model"),
                lambda: admin.unpin("org/model"),
                lambda: admin.evict(1, dry_run=True),
            ):
                with pytest.raises(PolicyDenied, match="is no administrator"):
                    attempt()
        finally:
            os.seteuid(0)
        [model] = client.models()
    assert not model.is_pinned
