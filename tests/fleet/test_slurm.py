"""The Slurm prolog as it is shipped, run by a real slurmd before the tasks of a job array."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.nginx_mirror import EXAMPLES
from tests.support.slurm import Slurm, needs_slurm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.hub import Repo, TestHub

pytestmark = [
    needs_slurm,
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd and its prolog are root's"),
]

CRAFTCACHE = f"{sys.executable} -m craftcache.cli"

TASK = f'echo "$SLURM_ARRAY_TASK_ID: $({CRAFTCACHE} warm --check org/model)"'
"""Asks whether the model is warm, and fetches nothing."""


@pytest.fixture
def daemon(base: Path, threaded_hub: TestHub, export_repo: Repo) -> Iterator[DaemonProcess]:
    with DaemonProcess(base / "node", HF_ENDPOINT=threaded_hub.endpoint) as running:
        yield running


@pytest.fixture
def slurm(base: Path, daemon: DaemonProcess) -> Iterator[Slurm]:
    """Its prolog is the example, told where this test has what an installation has in /opt."""
    command = base / "craftcache"
    command.write_text(f'#!/bin/sh\nexec {CRAFTCACHE} "$@"\n')
    prolog = base / "prolog"
    prolog.write_text(
        f"#!/bin/sh\nexport CRAFTCACHE={command} CRAFTCACHE_SOCKET_DIR={daemon.socket_dir}\n"
        f"exec {EXAMPLES}/slurm-prolog.sh\n"
    )
    for path in (command, prolog):
        path.chmod(0o755)
    (base / "slurm").mkdir(mode=0o755)
    with Slurm(base / "slurm", prolog) as running:
        yield running


def submit(slurm: Slurm, daemon: DaemonProcess, comment: str, output: Path) -> None:
    """Queue an array of two tasks."""
    queued = slurm.run(
        *("sbatch", "--array=1-2", f"--comment={comment}", "--wrap", TASK),
        *(f"--output={output}.%a", f"--chdir={output.parent}"),
        CRAFTCACHE_SOCKET_DIR=str(daemon.socket_dir),
    )
    assert queued.returncode == 0, queued.stderr + slurm.log()


def test_an_array_finds_warm_what_its_comment_names_and_costs_one_copy(
    slurm: Slurm, daemon: DaemonProcess, threaded_hub: TestHub, base: Path
) -> None:
    submit(slurm, daemon, "craftcache:org/model", base / "out")
    # What cannot be warmed drains no node and keeps no job from its start.
    submit(slurm, daemon, "craftcache:org/absent", base / "absent")
    slurm.wait_done()
    for task in (1, 2):
        said = Path(f"{base}/out.{task}").read_text()
        assert said == f"{task}: org/model: warm\n"
        assert Path(f"{base}/absent.{task}").read_text().startswith(f"{task}: ")
    sent = threaded_hub.bytes_sent(origin="cdn")
    assert sent == sum(path.stat().st_size for path in EXPORT_FILES.values())
    assert slurm.node_state() == "idle"
