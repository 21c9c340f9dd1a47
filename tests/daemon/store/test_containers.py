"""Workers in containers: nothing of the cache but descriptors, and no way to write through them.

The namespaces are real, which takes root; how ``serve_dir`` is checked is tested without them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.config import ConfigError
from craftcache.errors import CraftcacheError
from craftcached.store.opener import BlobOpener
from tests.support import SUPPORT
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.indexes import index_without_tensors
from tests.support.published import keeping, source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.hub import Repo, TestHub

WORKER = SUPPORT / "contained_worker.py"
NOBODY = 65534
DIGESTS = {
    name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in EXPORT_FILES.items()
}

READ_ONLY = 'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && shift 2 && exec "$@"'
"""Runs a command where the second directory is the first, read-only: BindReadOnlyPaths=."""

CONTAINED = (
    'mount --bind "$1/run/worker" "$2/worker" && mount -t tmpfs none "$1" && shift 2 && exec "$@"'
)
"""Runs a command that sees the folder ``worker`` of the sockets, and nothing else of the node."""


def unshared(script: str, *arguments: str) -> list[str]:
    """The command that runs ``script`` in a mount namespace of its own."""
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh", *arguments]


def may_mount() -> bool:
    done = subprocess.run(unshared("mount -t tmpfs none /mnt"), capture_output=True)
    return os.geteuid() == 0 and done.returncode == 0


needs_namespaces = pytest.mark.skipif(
    not may_mount(), reason="needs root and mount namespaces of its own"
)


def work(base: Path, *, uid: int) -> dict[str, Any]:
    """What a worker in a container reports; see contained_worker."""
    with tempfile.TemporaryDirectory(prefix="cc-") as box:
        os.chmod(box, 0o755)
        Path(box, "worker").mkdir()
        done = subprocess.run(
            [*unshared(CONTAINED, str(base), box), sys.executable, str(WORKER), box, str(uid)],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    reported: dict[str, Any] = json.loads(done.stdout)
    assert reported["served_by"] == "daemon"
    assert reported["keys"] == ["best_state", "exported", "version", "xp.cfg"]
    assert reported["sha256"] == DIGESTS
    return reported


@pytest.fixture
def directories(base: Path, export_repo: Repo) -> Path:
    """A cache that only the daemon's user may enter, and where it is to be mounted read-only."""
    (base / "cache").mkdir(mode=0o700)
    (base / "served").mkdir()
    return base


@pytest.fixture
def serving(directories: Path, threaded_hub: TestHub) -> Iterator[DaemonProcess]:
    """A daemon that serves through a read-only mount."""
    within = unshared(READ_ONLY, str(directories / "cache"), str(directories / "served"))
    with DaemonProcess(
        directories,
        *("--serve-dir", str(directories / "served")),
        within=within,
        HF_ENDPOINT=threaded_hub.endpoint,
    ) as running:
        yield running


@needs_namespaces
def test_root_in_a_container_cannot_write_through_what_it_was_sent(
    serving: DaemonProcess, directories: Path
) -> None:
    reported = work(directories, uid=0)
    assert set(reported["writing"].values()) == {"EROFS"}


@needs_namespaces
def test_another_user_without_permission_on_the_cache_loads_as_well(
    serving: DaemonProcess, directories: Path
) -> None:
    reported = work(directories, uid=NOBODY)
    assert set(reported["writing"].values()) <= {"EACCES", "EROFS", "EACCES/EROFS"}


@needs_namespaces
def test_without_serve_dir_root_in_a_container_could_write(
    directories: Path, threaded_hub: TestHub
) -> None:
    with DaemonProcess(directories, HF_ENDPOINT=threaded_hub.endpoint):
        reported = work(directories, uid=0)
    assert set(reported["writing"].values()) == {"opened"}


def test_a_daemon_whose_serve_dir_can_be_written_to_does_not_start(directories: Path) -> None:
    daemon = DaemonProcess(directories, "--serve-dir", str(directories / "cache"))
    daemon.spawn()
    try:
        assert daemon.wait() == 1
    finally:
        daemon.__exit__()
    assert "cannot start: serve_dir" in daemon.log
    assert "BindReadOnlyPaths=" in daemon.log


async def test_serve_dir_must_show_the_cache_read_only(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        cache = parts.store.cache
        BlobOpener(parts.store, None).check()
        with pytest.raises(ConfigError, match="can be written to"):
            BlobOpener(parts.store, cache.root).check()
        (tmp_path / "other").mkdir()
        with pytest.raises(ConfigError, match="does not show the files"):
            BlobOpener(parts.store, tmp_path / "other").check()
        assert list(cache.staging.iterdir()) == []


async def test_a_serve_dir_that_stops_showing_the_cache_is_the_daemon_s_own_fault(
    tmp_path: Path,
) -> None:
    async with keeping(tmp_path) as parts:
        manifest = await parts.publish("a", file=b"bytes")
        store, cache = parts.store, parts.store.cache
        await store.index_files.write(manifest.files[0].sha256, index_without_tensors(5))
        manifest = store.manifest(source("a")) or manifest
        opened = BlobOpener(store, None).open(manifest, manifest.files)
        assert opened is not None
        opened.close()
        for serve_dir, what in ((cache.root, "can be written to"), (tmp_path / "gone", "lacks")):
            with pytest.raises(CraftcacheError, match=what) as raised:
                BlobOpener(store, serve_dir).open(manifest, manifest.files)
            assert type(raised.value) is CraftcacheError  # so workers use another way
        parts.path(manifest).unlink()
        assert BlobOpener(store, tmp_path / "gone").open(manifest, manifest.files) is None
        assert BlobOpener(store, None).open(manifest, manifest.files) is None
