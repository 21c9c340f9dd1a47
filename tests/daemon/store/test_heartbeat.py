"""One daemon writes to a cache, also where the file system does not carry its lock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from craftcache.errors import Unavailable
from craftcached.process_identity import ProcessIdentity
from craftcached.store.heartbeat import Heartbeat
from tests.support.daemons import DaemonProcess
from tests.support.tools import needs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

BEAT_SECONDS = 0.05
PATIENT_SECONDS = 1.0
"""Time between the beats of who looks at one that beats: many of the other's."""

ELSEWHERE = replace(ProcessIdentity.mine(), host="node7", boot="another boot", pid=77)
"""A process that cannot be looked at from here."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "daemon.heartbeat"


@contextlib.asynccontextmanager
async def beating(path: Path, beat_seconds: float = BEAT_SECONDS) -> AsyncIterator[Heartbeat]:
    heartbeat = Heartbeat(path, beat_seconds=beat_seconds)
    try:
        await heartbeat.start()
        yield heartbeat
    finally:
        await heartbeat.stop()


def sign(process: ProcessIdentity, *, beat: int = 0) -> bytes:
    return json.dumps({"token": "theirs", "process": asdict(process), "beat": beat}).encode()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_name("part")
    part.write_bytes(data)
    part.replace(path)


async def test_it_is_gone_once_the_daemon_stopped(path: Path) -> None:
    async with beating(path) as heartbeat:
        assert json.loads(path.read_bytes())["process"] == asdict(ProcessIdentity.mine())
    assert not path.exists()
    assert not heartbeat.lost.is_set()


async def test_a_second_one_is_refused_while_the_first_beats(path: Path) -> None:
    path.parent.mkdir()
    async with beating(path) as first:
        with pytest.raises(Unavailable, match=r"another craftcached \(pid \d+ on .*read_only"):
            async with beating(path, PATIENT_SECONDS):
                pass
        assert path.exists()  # the first one's
        assert not first.lost.is_set()


@pytest.mark.parametrize("data", [sign(ELSEWHERE), b"", b"{}", b"[1]", b'{"process": 3}'])
async def test_what_stays_as_it_is_is_nobodys(path: Path, data: bytes) -> None:
    put(path, data)
    async with beating(path) as heartbeat:
        assert not heartbeat.lost.is_set()


async def test_a_process_that_was_seen_to_end_is_not_waited_for(path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    put(path, sign(replace(ProcessIdentity.mine(), pid=ended.pid)))
    heartbeat = Heartbeat(path, beat_seconds=3600)
    await asyncio.wait_for(heartbeat.start(), 60)
    await heartbeat.stop()


async def test_a_process_of_another_namespace_is_not_judged(path: Path) -> None:
    me = ProcessIdentity.mine()
    assert not replace(me, namespace=1, started=1).has_ended(seen_from=me)
    assert not replace(me, boot="", started=1).has_ended(seen_from=replace(me, boot=""))
    assert not me.has_ended(seen_from=me)
    assert replace(me, started=1).has_ended(seen_from=me)  # its pid was given again


async def test_who_starts_in_the_same_moment_is_noticed(path: Path) -> None:
    async with beating(path) as heartbeat:
        put(path, sign(ELSEWHERE))
        await heartbeat.beat()
        assert heartbeat.lost.is_set()
    assert path.read_bytes() == sign(ELSEWHERE)  # theirs is left alone


async def test_a_removed_directory_ends_nothing(path: Path) -> None:
    async with beating(path) as heartbeat:
        path.unlink()
        path.parent.rmdir()
        await heartbeat.beat()
        assert path.exists()
        assert not heartbeat.lost.is_set()


def unmount(place: Path) -> None:
    subprocess.run(["fusermount", "-u", "-z", place], check=True)


@pytest.fixture
def bases(base: Path) -> Iterator[list[Path]]:
    """Those of two nodes whose caches are one directory, each behind a FUSE mount of its own."""
    (base / "store").mkdir()
    with contextlib.ExitStack() as stack:
        nodes = [base / "a", base / "b"]
        for node in nodes:
            (node / "cache").mkdir(parents=True)
            done = subprocess.run(
                ["bindfs", base / "store", node / "cache"], capture_output=True, text=True
            )
            if done.returncode:
                pytest.skip(f"no FUSE here: {done.stderr.strip()}")
            stack.callback(unmount, node / "cache")
        yield nodes


@needs("bindfs", "fusermount")
def test_two_daemons_behind_mounts_that_carry_no_lock(bases: list[Path]) -> None:
    second = DaemonProcess(bases[1])
    with DaemonProcess(bases[0]) as first:
        second.spawn()
        assert second.wait() == 1
        assert f"another craftcached (pid {first.pid} on" in second.log
        first.kill()
    with second:  # without a wait: it sees that the first has ended
        assert "looking for" not in second.log.rpartition("another craftcached")[2]


@needs("bindfs", "fusermount")
def test_a_daemon_whose_cache_was_taken_ends(bases: list[Path]) -> None:
    with DaemonProcess(bases[0]) as daemon:
        put(daemon.cache_dir / ".craftcache" / "daemon.heartbeat", sign(ELSEWHERE))
        assert daemon.wait() == 1
        assert f"another craftcached took over {daemon.cache_dir}" in daemon.log
