"""Who is measured: each fetches the file, checks its sha256 and fsyncs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.daemons import DaemonProcess

from .origin import FILENAME, REPO_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .origin import LargeFile, Origin

__all__ = ["Cost", "Contender", "Python", "Daemon", "Curl", "Aria2", "CHILD"]

CHILD = "tests.bench.fetch.child"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one download took.

    Attributes:
        seconds: Of wall time, the fsync included, the interpreter's start not.
        cpu_seconds: Of all processes that took part, the origin aside.
        peak_rss: Bytes, of the largest of them.
        worst_loop_lag: Seconds for which the engine's event loop was held up, at the worst.
    """

    seconds: float
    cpu_seconds: float
    peak_rss: int
    worst_loop_lag: float | None = None


class Contender:
    """A way to fetch a file; also the base of the others.

    Attributes:
        name: As the table shows it.
    """

    name: str

    def fetch(self, origin: Origin, file: LargeFile, base: Path, *, capped: bool) -> Cost:
        """Fetch ``file`` into ``base``."""
        raise NotImplementedError


class Python(Contender):
    """A library, in a fresh interpreter that measures itself.

    Args:
        name: One that the child knows.
        connections: The most that it may use at once, where it has a choice.
    """

    def __init__(self, name: str, *, connections: int = 8, shown: str | None = None) -> None:
        self._library = name
        self._connections = connections
        self.name = shown or name

    def fetch(self, origin: Origin, file: LargeFile, base: Path, *, capped: bool) -> Cost:
        url = f"{origin.endpoint(capped=capped)}/{REPO_ID}/resolve/main/{FILENAME}"
        if self._library == "torch.hub":
            url = origin.url(capped=capped)  # it does not check a hash behind a redirect's name
        command = [sys.executable, "-m", CHILD, self._library, url, file.size, file.sha256]
        environment = {
            **os.environ,
            "HF_ENDPOINT": origin.endpoint(capped=capped),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        output = subprocess.run(
            [*map(str, command), str(base), str(self._connections)],
            check=True,
            stdout=subprocess.PIPE,
            env=environment,
        ).stdout
        return Cost(**json.loads(output))


class Daemon(Contender):
    """A whole ``craftcached``, asked to warm the file's URL; what it costs to start is left out."""

    name = "craftcached"

    def fetch(self, origin: Origin, file: LargeFile, base: Path, *, capped: bool) -> Cost:
        with DaemonProcess(base, CRAFTCACHE_INSECURE_HOSTS="127.0.0.1") as daemon:
            client = daemon.client()
            used, began = _cpu_seconds(daemon.pid), time.perf_counter()
            client.warm(f"{origin.opaque_url(capped=capped)}#sha256={file.sha256}")
            seconds = time.perf_counter() - began
            return Cost(seconds, _cpu_seconds(daemon.pid) - used, _peak_rss(daemon.pid))


class Curl(Contender):
    """curl, then sha256sum, then an fsync."""

    name = "curl + sha256sum"

    def fetch(self, origin: Origin, file: LargeFile, base: Path, *, capped: bool) -> Cost:
        target = base / "done"
        began = time.perf_counter()
        fetch = _run(["curl", "-sSf", "-o", str(target), origin.url(capped=capped)])
        check = _run(["sha256sum", "--check", "--quiet"], f"{file.sha256}  {target}\n")
        _fsync(target)
        return _total(began, [fetch, check])


class Aria2(Contender):
    """aria2c with eight connections and its checksum option, then an fsync."""

    name = "aria2c -x8"

    def fetch(self, origin: Origin, file: LargeFile, base: Path, *, capped: bool) -> Cost:
        options = ["-x8", "-s8", "--quiet", "--allow-overwrite=true", f"--dir={base}", "--out=done"]
        began = time.perf_counter()
        fetch = _run(
            ["aria2c", *options, f"--checksum=sha-256={file.sha256}", origin.url(capped=capped)]
        )
        _fsync(base / "done")
        return _total(began, [fetch])


def _run(command: Sequence[str], text: str | None = None) -> tuple[float, int]:
    """CPU seconds and peak RSS of a command that must succeed."""
    if shutil.which(command[0]) is None:
        raise SystemExit(f"the benchmark needs {command[0]}: apt-get install nginx aria2 curl")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    if process.stdin is not None:
        process.stdin.write(text or "")
        process.stdin.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command[0]} failed with status {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _peak_rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM")


def _total(began: float, runs: Sequence[tuple[float, int]]) -> Cost:
    cpu, memory = zip(*runs, strict=True)
    return Cost(time.perf_counter() - began, sum(cpu), max(memory))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
