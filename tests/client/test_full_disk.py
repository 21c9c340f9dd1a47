"""A full disk says what it lacks: bytes, inodes, or this user's share."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from craftcache.cache.directory import CacheDir
from craftcache.doctor.storage import check
from craftcache.errors import StorageFull
from craftcache.full_disk import storage_full
from tests.support.clients import as_root
from tests.support.daemons import DaemonProcess
from tests.support.fetching import cdn_file, rig_at
from tests.support.hub import Data, Generated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from craftcache.doctor.finding import Finding
    from tests.support.hub import Repo, TestHub


@contextmanager
def disk(path: Path, options: str) -> Iterator[Path]:
    """A file system of its own, with few inodes or bytes."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def use_up_inodes(directory: Path, leaving: int) -> None:
    """Leave room for so many more files."""
    for number in range(os.statvfs(directory).f_favail - leaving):
        (directory / f"filler{number}").touch()


def examine_space(directory: Path) -> Finding:
    """What the doctor says of the room there."""
    return next(each for each in check(directory) if each.check == "disk space")


def assert_says_inodes(error: StorageFull) -> None:
    assert "inodes" in error.message
    assert "bytes" not in error.message
    assert error.missing_bytes == 0


@as_root
@pytest.mark.parametrize("left", [0, 1])
async def test_the_daemons_engine_says_that_inodes_lack(
    hub: TestHub, tmp_path: Path, left: int
) -> None:
    with disk(tmp_path / "disk", "size=64m,nr_inodes=64") as small:
        async with rig_at(small) as rig:
            use_up_inodes(small, left)
            with pytest.raises(StorageFull) as raised:
                await rig.fetch(cdn_file(hub, Generated(3 << 20, seed=1)))
            for path in small.glob("filler*"):
                path.unlink()
            await rig.fetch(cdn_file(hub, Generated(3 << 20, seed=1)))
    assert_says_inodes(raised.value)


@as_root
@pytest.mark.parametrize("left", [0, 6])
def test_publishing_says_that_inodes_lack(
    base: Path, threaded_hub: TestHub, export_repo: Repo, left: int
) -> None:
    """Wherever they give out on the way, and it goes on once there are some again."""
    with disk(base / "disk", "size=64m,nr_inodes=200") as small:
        (small / "cache").mkdir()
        (base / "cache").symlink_to(small / "cache")
        with (
            DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as daemon,
            daemon.client() as client,
        ):
            use_up_inodes(small, left)
            with pytest.raises(StorageFull) as raised:
                client.warm("org/model")
            assert any("inodes" in each for each in client.status().problems)
            assert "inodes" in examine_space(small / "cache").message
            for path in small.glob("filler*"):
                path.unlink()
            assert client.warm("org/model")
    assert_says_inodes(raised.value)


@as_root
def test_a_worker_alone_says_that_inodes_lack(base: Path, threaded_hub: TestHub) -> None:
    threaded_hub.files["/w.th"] = Data(bytes(1000))
    with disk(base / "disk", "size=8m,nr_inodes=40") as small:
        client = Client(socket_dir=base / "nothing", cache_dir=small / "cache")
        CacheDir(client.cache_dir).create()
        (client.cache_dir / ".craftcache" / "locks").mkdir()
        use_up_inodes(small, 1)
        with pytest.raises(StorageFull) as raised:
            client.load_state_dict(threaded_hub.cdn_url("/w.th"))
    assert_says_inodes(raised.value)


def test_bytes_that_lack_are_counted(tmp_path: Path) -> None:
    full = storage_full(tmp_path, 100, free=40, source="s")
    assert (full.missing_bytes, full.source) == (60, "s")
    assert "lacks 60 bytes" in full.message


def test_a_quota_is_said_to_be_one(tmp_path: Path) -> None:
    error = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    full = storage_full(tmp_path, 100, error=error, free=1 << 40, least=1)
    assert "quota" in full.message
    assert full.missing_bytes == 1


def test_a_disk_that_is_full_with_bytes_to_spare_is_not_said_to_lack_any(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    full = storage_full(tmp_path, 100, error=error, free=1 << 40)
    assert "full, though it reports 1.1 TB free" in full.message


def test_a_directory_that_is_gone_is_no_reason_to_fail_otherwise(tmp_path: Path) -> None:
    full = storage_full(tmp_path / "gone", 100, error=OSError(errno.ENOSPC, "full"))
    assert full.missing_bytes == 100
