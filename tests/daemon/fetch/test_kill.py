"""What is left when the process is killed, or the disk is full: real processes, a real tmpfs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from craftcache.errors import StorageFull
from tests.support import SUPPORT
from tests.support.fetching import MIB, cdn_file, rig_at, sha256_of
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
