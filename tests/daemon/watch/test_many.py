"""Many directories, and more than inotify can watch."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from tests.support.watching import SETTLE, rule, watching, write_pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIRECTORIES = 200
QUIET_SECONDS = 5.0


async def test_two_hundred_directories_are_watched_by_one_thread_and_cost_next_to_nothing(
    base: Path, record_property: Callable[[str, object], None]
) -> None:
    for number in range(DIRECTORIES):
        (base / "runs" / str(number) / "export").mkdir(parents=True)
    async with watching(base, rule(base / "runs" / "*" / "export", "all")) as rig:
        await rig.until(lambda: len(rig.watches.reports()) == DIRECTORIES)
        await rig.until(lambda: all(r.state == "partial" for r in rig.watches.reports()))
        for number in (0, 77, 199):
            write_pair(base / "runs" / str(number) / "export", number)
            await rig.until_served(f"all-{number}", 1)
        assert [r.polled for r in rig.watches.reports()] == [None] * DIRECTORIES
        before = time.process_time()
        await asyncio.sleep(QUIET_SECONDS)  # what is measured is that nothing happens
        share = (time.process_time() - before) / QUIET_SECONDS
        record_property("cpu_share_of_200_quiet_directories", f"{share:.4f}")
        print(f"{DIRECTORIES} quiet directories: {share:.2%} of a core")


LIMITED = """
import os, sys
with open("/proc/sys/user/" + sys.argv[1], "w") as limit:
    limit.write(sys.argv[2])
os.execv(sys.executable, [sys.executable, "-m", "craftcached", *sys.argv[3:]])
"""


@pytest.mark.parametrize(
    ("limit", "number", "setting"),
    [
        ("max_inotify_watches", "3", "fs.inotify.max_user_watches"),
        ("max_inotify_instances", "0", "fs.inotify.max_user_instances"),
    ],
)
def test_where_inotifys_limits_are_exhausted_directories_are_polled_and_that_is_said(
    base: Path, limit: str, number: str, setting: str
) -> None:
    inside = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here, and limits of others must stay")
    config = base / "config.toml"
    config.write_text(
        "".join(
            f'[[watches]]\nname = "run{n}"\ndirectory = "{base}/runs/{n}"\nsettle = {SETTLE}\n'
            for n in range(5)
        )
    )
    daemon = subprocess.Popen(
        [
            *(*inside, sys.executable, "-c", LIMITED, limit, number, "--config", str(config)),
            *("--cache-dir", str(base / "cache"), "--socket-dir", str(base / "run")),
            *("--state-dir", str(base / "state")),
        ],
        env=os.environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert daemon.stderr is not None
    lines: list[str] = []
    try:
        for line in daemon.stderr:
            lines.append(line)
            if "serving" in line:
                break
        client = Client(socket_dir=base / "run", cache_dir=base / "cache", fallback="none")
        for name in range(5):
            write_pair(base / "runs" / str(name), name)
            assert next(client.follow(f"run{name}")).number == 1
    finally:
        daemon.terminate()
        _, rest = daemon.communicate()
    log = "".join(lines) + rest
    assert f"inotify's limit {setting} is exhausted; raise it with sysctl" in log
    assert "is looked at every" in log
