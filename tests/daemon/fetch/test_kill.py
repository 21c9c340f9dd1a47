"""What is left when the process is killed, or the disk is full: real processes, a real tmpfs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from craftcache.errors import StorageFull
from craftcached.fetch import Engine
from craftcached.fetch.disk_space import DiskSpace
from tests.support import SUPPORT
from tests.support.fetching import MIB, QUICK, Rig, cdn_file, rig_at, sha256_of
from tests.support.hub import Generated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.hub import TestHub

CONTENT = Generated(8 * MIB + 99)
CHILD = SUPPORT / "fetch_child.py"


def child(hub: TestHub, staging: Path) -> subprocess.Popen[str]:
    command = [sys.executable, CHILD, staging, hub.cdn_url("/w.bin")]
    return subprocess.Popen(
        [*map(str, command), str(CONTENT.size), CONTENT.sha256], stdout=subprocess.PIPE, text=True
    )


def test_killed_again_and_again_it_never_fetches_twice_what_it_had(
    threaded_hub: TestHub, tmp_path: Path
) -> None:
    threaded_hub.files["/w.bin"] = CONTENT
    known = 0
    for kill_at in range(MIB, CONTENT.size, 2 * MIB):
        with child(threaded_hub, tmp_path) as process:
            assert process.stdout is not None
            for line in process.stdout:
                known = int(line)
                if known >= kill_at:
                    break
            process.kill()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["k.journal", "k.part"]
    with child(threaded_hub, tmp_path) as process:
        assert process.stdout is not None
        result = json.loads(list(process.stdout)[-1])
    assert result["sha256"] == CONTENT.sha256
    assert result["reused"] >= known
    assert result["reused"] + result["fetched"] == CONTENT.size
    [whole] = tmp_path.glob("k-*.whole")
    assert sha256_of(whole) == CONTENT.sha256


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "craftcache-test", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def test_a_disk_that_fills_up_meanwhile_is_left_as_it_was(
    hub: TestHub, small_disk: Path
) -> None:
    small = Generated(MIB, seed=1)
    (small_disk / "somebody else's").write_bytes(bytes(MIB))
    async with rig_at(small_disk, free=lambda: 1 << 40) as rig:
        with pytest.raises(StorageFull) as full:
            await rig.fetch(cdn_file(hub, CONTENT))
        assert full.value.missing_bytes > 0
        assert rig.left == []
        fetched = await rig.fetch(cdn_file(hub, small, "/small", key="small"))
        assert sha256_of(fetched.path) == small.sha256


class ClearingPolicy:
    """Makes room by removing a file that stands in the way, the second time that it is asked."""

    def __init__(self, in_the_way: Path) -> None:
        self._in_the_way = in_the_way
        self.asked: list[int] = []

    async def make_room(self, more: int, *, source: str) -> bool:
        self.asked.append(more)
        if len(self.asked) == 1:
            return False  # there seemed to be room
        self._in_the_way.unlink(missing_ok=True)
        return True


async def test_a_disk_that_fills_up_is_cleared_and_the_fetch_goes_on_where_it_was(
    hub: TestHub, small_disk: Path
) -> None:
    large = Generated(3 * MIB, seed=2)
    in_the_way = small_disk / "in the way"
    in_the_way.write_bytes(bytes(2 * MIB))
    policy = ClearingPolicy(in_the_way)
    space = DiskSpace(lambda: 1 << 40, None, small_disk)
    space.policy = policy
    staging = small_disk / "staging"
    async with Engine(staging, QUICK, check_url=lambda _: None, space=space) as engine:
        fetched = await Rig(engine, staging).fetch(cdn_file(hub, large))
        assert sha256_of(fetched.path) == large.sha256
        assert not in_the_way.exists()
        # Once before the first byte, once when the disk was full, once for what was lacking then.
        assert len(policy.asked) >= 2
        assert policy.asked[0] == large.size
        assert 0 < policy.asked[1] < large.size
        assert fetched.bytes_reused > 0
        assert space.claimed == 0
