"""A thousand overwrites in place under workers that follow, map and look again."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import IO, TYPE_CHECKING

import pytest

from tests.support import SUPPORT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import DaemonProcess

WORKERS = 4
BURSTS = 12
PAIRS_PER_BURST = 84
LAST = -1


def _spawn(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SUPPORT / script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _stream(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@pytest.mark.timeout(180)
def test_no_worker_crashes_or_sees_a_mixed_pair_or_a_wrong_number(
    patient_daemon: DaemonProcess, export: Path
) -> None:
    daemon = patient_daemon
    export.mkdir(parents=True)
    workers = [_spawn("watch_worker.py", str(daemon.socket_dir), "run") for _ in range(WORKERS)]
    writer = _spawn("watch_writer.py")
    following = daemon.client().follow("run")

    def save(first: int, last: int) -> None:
        _stream(writer.stdin).write(f"{export} {first} {last}\n")
        _stream(writer.stdin).flush()
        assert _stream(writer.stdout).readline() == "done\n"

    try:
        save(0, 0)
        next(following)
        for worker in workers:
            assert _stream(worker.stdout).readline() == "ready\n"
        for burst in range(BURSTS):
            first = 1 + burst * PAIRS_PER_BURST
            save(first, first + PAIRS_PER_BURST - 1)
            next(following)  # the burst is over, and its last pair is a generation
        save(LAST, LAST)
        results = [json.loads(_stream(worker.stdout).readline()) for worker in workers]
        statuses = [worker.wait() for worker in workers]
    finally:
        for process in (*workers, writer):
            process.kill()
            process.communicate()
    assert statuses == [0] * WORKERS
    for result in results:
        numbers = [number for number, _ in result["seen"]]
        assert result["mixed"] == 0
        assert result["seen"][-1][1] == LAST
        assert numbers == sorted(set(numbers))
        assert len(numbers) > BURSTS / 2
