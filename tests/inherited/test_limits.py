"""A worker that may not have what it takes is told which limit, and blames nobody else."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from craftcache.errors import ResourceLimit
from craftcache.wire import Problem, decode_answer
from craftcached.serve.response import Response

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub

WORKER = """
import contextlib, json, os, resource, sys, warnings
warnings.simplefilter("ignore")
import torch
import craftcache
from craftcache import Client
from craftcache.checkpoint import weights_only
from craftcache.cache import directory
source, sockets, directory, limit = sys.argv[1:5]
client = Client(socket_dir=sockets, cache_dir=directory)
def attempt():
    try:
        return [client.load(source, parts=("lm",)).served_by]
    except craftcache.CraftcacheError as error:
        return [error.code, error.source, error.message]
"""

FEW_FILES = """
said = []
client.status()
client.close()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
free = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is
os.close(free)
for left in range(int(limit)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + left, hard))
    said.append(attempt())
    client.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(json.dumps(said))
"""

LITTLE_MEMORY = """
pages = int(open("/proc/self/statm").read().split()[0])
held = pages * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(limit), -1))
print(json.dumps(attempt()))
"""

LARGE = 64 * 1024 * 1024


def run(steps: str, source: str, daemon: DaemonProcess, limit: int) -> Any:
    finished = subprocess.run(
        [
            *(sys.executable, "-c", WORKER + steps, source),
            *(str(daemon.socket_dir), str(daemon.cache_dir), str(limit)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "loading without the daemon" not in finished.stderr
    return json.loads(finished.stdout)


def test_too_few_open_files_are_no_fault_of_the_daemon(daemon: DaemonProcess) -> None:
    """Whatever it lacks them for: a connection, what comes over it, or the file itself."""
    daemon.client().warm("org/model")
    said = run(FEW_FILES, "org/model", daemon, 12)
    assert ["daemon"] in said
    failed = [answer for answer in said if answer != ["daemon"]]
    assert len(failed) >= 2
    for code, source, message in failed:
        assert (code, source) == ("ResourceLimit", "org/model")
        assert "RLIMIT_NOFILE is " in message


def test_too_few_open_files_for_a_local_file(daemon: DaemonProcess, tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "model.pt")
    source = str(tmp_path / "model.pt")
    said = run(FEW_FILES, source, daemon, 4)
    assert said[0][:2] == ["ResourceLimit", source]
    assert "RLIMIT_NOFILE is " in said[0][2]
    assert said[-1] == ["local"]


LITTLE_ROOM_FOR_STACKS = """
import threading
with contextlib.suppress(craftcache.NotFound):
    client.load("org/absent")  # all modules are there then
threading.stack_size(int(limit))
""" + LITTLE_MEMORY.replace("int(limit)", "int(limit) // 2")

SHORT_FILES = """
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
print(json.dumps(attempt()))
"""


@pytest.mark.parametrize(
    ("steps", "limit", "named"),
    [(LITTLE_ROOM_FOR_STACKS, LARGE, "RLIMIT_AS is "), (SHORT_FILES, 64, "RLIMIT_FSIZE is 64 ")],
    ids=["stacks", "files"],
)
@pytest.mark.usefixtures("export_repo")
def test_a_fetch_of_its_own_names_the_limit(
    base: Path,
    threaded_hub: TestHub,
    monkeypatch: pytest.MonkeyPatch,
    steps: str,
    limit: int,
    named: str,
) -> None:
    """A thread that lacks address space for its stack is not one too many."""
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)
    finished = subprocess.run(
        [
            *(sys.executable, "-c", WORKER + steps, "org/model"),
            *(str(base / "run"), str(base / "cache"), str(limit)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    code, source, message = json.loads(finished.stdout)
    assert (code, source) == ("ResourceLimit", "org/model")
    assert named in message


@pytest.mark.parametrize("legacy", [False, True])
def test_too_little_memory_names_the_limit(
    daemon: DaemonProcess, tmp_path: Path, legacy: bool
) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(LARGE // 4)}, path, _use_new_zipfile_serialization=not legacy)
    code, source, message = run(LITTLE_MEMORY, str(path), daemon, LARGE // 4)
    assert (code, source) == ("ResourceLimit", str(path))
    assert "RLIMIT_AS is " in message


def test_too_little_memory_for_a_map_is_no_fault_of_the_daemon(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    package = {"best_state": {"w": torch.zeros(LARGE // 4)}, "xp.cfg": "a: 1\n"}
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        torch.save(package, export / name)
    subprocess.run(
        [
            *(sys.executable, "-m", "craftcache.cli", "--socket-dir", str(daemon.socket_dir)),
            *("watch", "add", str(export), "--name", "large", "--settle", "0.1"),
        ],
        check=True,
    )
    next(daemon.client().follow("large"))
    code, source, message = run(LITTLE_MEMORY, "watch:large", daemon, LARGE // 4)
    assert (code, source) == ("ResourceLimit", "watch:large")
    assert "RLIMIT_AS is " in message


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_limit_of_the_daemon_is_told_to_the_worker_which_goes_on_alone(error: Exception) -> None:
    problem = decode_answer(Response.problem(error).packet)
    assert isinstance(problem, Problem)
    assert isinstance(problem.error, ResourceLimit)
    assert problem.own_fault
