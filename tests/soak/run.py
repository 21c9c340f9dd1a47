"""The soak's conductor: hub, daemon, clients, changes, kills, and what must hold all the time."""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.soak.client import Orders
from tests.soak.content import FILENAMES, WATCHED, check, export_files
from tests.support.api import Api
from tests.support.daemons import DaemonProcess
from tests.support.hub import Data, hub_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.hub import Repo, TestHub

__all__ = ["Plan", "Report", "soak"]

PINNED = 0
"""Number of the model that is pinned at the start, for ever."""

LOOKS_SECONDS = 0.25
"""Time between two looks at the quota."""

CALM_SHARE = 0.15
"""Part of the time, at the end, in which the daemon is not killed, to see its memory."""

MEMORY_BYTES = 48 * 1024 * 1024
"""Growth of the daemon's memory in that time which is put down to chance."""

MORE_DESCRIPTORS = 24
"""Open descriptors of an idle daemon beyond those of one that has just started."""

COUNTED = ("blobs", "staging")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done for how long.

    Attributes:
        seconds: How long the clients go on.
        processes: Numbers of processes, by uid.
        clients: Clients of each process.
        models: Models that there are.
        quota: Bytes of the cache; too few for all.
        kill_seconds: Least and most time between two kills of the daemon.
        seed: Of the chances.
    """

    seconds: float
    processes: dict[int, int]
    clients: int
    models: int = 24
    quota: int = 3_500_000
    kill_seconds: tuple[float, float] = (2.0, 5.0)
    seed: int = 0


@dataclass(slots=True)
class Report:
    """What happened, and what was wrong.

    Attributes:
        seen: How often what happened, over all clients.
        kills: Times that the daemon was killed.
        looks: Times that the quota was looked at while the daemon ran.
        most_bytes: Most bytes on the disk at any look.
        memory: Resident bytes of the daemon at the beginning and the end of the calm.
        descriptors: Open descriptors of the daemon when it had just started, and at the end.
        wrong: What was wrong; empty if nothing was.
    """

    seen: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    looks: int = 0
    most_bytes: int = 0
    memory: tuple[int, int] = (0, 0)
    descriptors: tuple[int, int] = (0, 0)
    wrong: list[str] = field(default_factory=list)


def soak(plan: Plan) -> Report:
    """Run the whole soak; as root, so that there can be several users."""
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cc-soak-")))
        os.chmod(base, 0o755)
        hub = stack.enter_context(hub_in_thread())
        repos = [hub.repo(f"org/m{number}") for number in range(plan.models)]
        for number, repo in enumerate(repos):
            _commit(repo, number, 0)
        daemon = stack.enter_context(
            DaemonProcess(
                base,
                *("--max-bytes", str(plan.quota), "--admin-socket-mode", "666"),
                HF_ENDPOINT=hub.endpoint,
            )
        )
        return Conductor(plan, base, hub, repos, daemon).run()


class Conductor:
    """Runs everything at once, and looks."""

    def __init__(
        self, plan: Plan, base: Path, hub: TestHub, repos: list[Repo], daemon: DaemonProcess
    ) -> None:
        self._plan = plan
        self._hub = hub
        self._repos = repos
        self._daemon = daemon
        self._export = base / "export"
        self._chance = random.Random(plan.seed)
        self._report = Report()
        self._is_over = threading.Event()
        self._is_calm = threading.Event()

    def run(self) -> Report:
        """The whole of it, from an empty cache to the last look."""
        report = self._report
        self._prepare()
        at_start = _descriptors(self._daemon.pid)
        with self._clients() as processes, ExitStack() as around:
            for work in (self._change, self._look, self._kill):
                around.enter_context(self._beside(work))
            for process in processes:
                self._hear(process)
            self._is_over.set()
        try:
            self._finish(at_start)
        except Exception as error:  # noqa: BLE001  # the report says what was wrong before, too
            report.wrong += [f"the end: {error!r}", self._daemon.log[-2000:]]
        return report

    def _prepare(self) -> None:
        """Warm and pin the one that must stay, and watch the export."""
        self._export.mkdir()
        self._write_export(0)
        with Api(self._daemon.socket_dir) as api, self._daemon.client() as client:
            client.warm(f"org/m{PINNED}")
            assert api.request("PUT", f"/pins/org/m{PINNED}").status_code == 200
            rule = {"directory": str(self._export), "settle": 0.2, "keep": 1}
            assert api.request("PUT", "/watches/run", json=rule).status_code == 200

    @contextmanager
    def _clients(self) -> Iterator[list[subprocess.Popen[str]]]:
        """The processes of all users, from when all are ready; ended with the context."""
        processes = []
        plan, daemon = self._plan, self._daemon
        users = [uid for uid, count in plan.processes.items() for _ in range(count)]
        try:
            for number, uid in enumerate(users):
                orders = Orders(
                    str(daemon.socket_dir),
                    str(daemon.cache_dir),
                    uid,
                    plan.clients,
                    plan.models,
                    PINNED,
                    plan.seconds,
                    plan.seed * 100 + number,
                )
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.soak.client", json.dumps(asdict(orders))],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
                )
            for process in processes:
                ready = _stream(process.stdout).readline()
                assert ready == "ready\n", _stream(process.stderr).read()
            for process in processes:
                _stream(process.stdin).write("go\n")
                _stream(process.stdin).flush()
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.communicate()

    def _hear(self, process: subprocess.Popen[str]) -> None:
        """Wait for a process's end, and add what it has to say to the report."""
        said, complaints = process.communicate()
        if process.returncode != 0 or not said:
            self._report.wrong.append(f"a client process ended badly: {complaints[-2000:]}")
            return
        result = json.loads(said.splitlines()[-1])
        self._report.seen.update(result["seen"])
        self._report.wrong += result["failures"]

    @contextmanager
    def _beside(self, work: Callable[[], None]) -> Iterator[None]:
        """A thread that calls ``work`` until all is over; what it raises is wrong."""

        def go_on() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001  # whatever it is, the report has it
                self._report.wrong.append(f"{work.__qualname__}: {error!r}")

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()

    def _change(self) -> None:
        """New revisions of models, and of the watched export, one after the other."""
        versions = Counter[int]()
        while not self._is_over.wait(self._chance.uniform(0.2, 1.0)):
            number = self._chance.randrange(self._plan.models)
            versions[number] += 1
            _commit(self._repos[number], number, versions[number])
            versions[WATCHED] += 1
            self._write_export(versions[WATCHED])

    def _write_export(self, version: int) -> None:
        for name, content in export_files(WATCHED, version).items():
            fresh = self._export / f".{name}.new"
            fresh.write_bytes(content)
            fresh.rename(self._export / name)

    def _look(self) -> None:
        """Look at the quota all the time, as the daemon tells it and as the disk has it."""
        report, quota = self._report, self._plan.quota
        beyond = 0
        while not self._is_over.wait(LOOKS_SECONDS):
            on_disk = _bytes_on_disk(self._daemon.cache_dir)
            report.most_bytes = max(report.most_bytes, on_disk)
            if on_disk > quota:
                report.wrong.append(f"{on_disk} bytes on the disk, of {quota}")
            try:
                room = _get(self._daemon.socket_dir, "/v1/room")
                pinned = _get(self._daemon.socket_dir, f"/v1/models/org/m{PINNED}")["pinned"]
            except (OSError, HTTPException, ValueError, KeyError):
                continue  # it is down
            report.looks += 1
            # What ends while it is measured counts twice at times; never three times in a row.
            beyond = beyond + 1 if room["used"] + room["claimed"] > quota else 0
            if beyond > 2:
                report.wrong.append(f"beyond the quota: {room}")
            if not pinned:
                report.wrong.append("the pin is lost")

    def _kill(self) -> None:
        """Kill the daemon and start it again, every few seconds until the calm."""
        begun = time.monotonic()
        calm_at = begun + self._plan.seconds * (1 - CALM_SHARE)
        while not self._is_over.wait(self._chance.uniform(*self._plan.kill_seconds)):
            if time.monotonic() > calm_at:
                break
            self._daemon.kill()
            self._report.kills += 1
            self._daemon.start()
        # Its first seconds fill its own caches; what grows after them would grow for ever.
        self._is_over.wait(self._plan.seconds * CALM_SHARE / 3)
        early = _resident_bytes(self._daemon.pid)
        self._is_over.wait()
        self._report.memory = (early, _resident_bytes(self._daemon.pid))

    def _finish(self, descriptors: int) -> None:
        """What is left when nobody asks for anything any more."""
        report, daemon = self._report, self._daemon
        if report.memory[1] - report.memory[0] > MEMORY_BYTES:
            report.wrong.append(f"memory grows: {report.memory}")
        with Api(daemon.socket_dir) as api, daemon.client() as client:
            assert api.request("DELETE", "/watches/run").status_code == 200
            _wait_idle(api)
            report.descriptors = (descriptors, _descriptors(daemon.pid))
            model = api.get(f"/models/org/m{PINNED}")
            if not model["pinned"] or model["pinned_until"]:
                report.wrong.append("the pin is lost")
            check(client.load(f"org/m{PINNED}"), PINNED)
            verdicts = api.request("POST", "/verify").json()["results"]
            report.wrong += [f"{each}" for each in verdicts if each["outcome"] != "right"]
        if report.descriptors[1] > descriptors + MORE_DESCRIPTORS:
            report.wrong.append(f"descriptors are leaked: {report.descriptors}")
        report.wrong += _left_in(daemon.cache_dir)
        report.wrong += _held_locks(daemon.cache_dir)
        if daemon.terminate() != 0:
            report.wrong.append(f"the daemon ends badly: {daemon.log[-2000:]}")
        report.wrong += [
            line for line in daemon.log.splitlines() if "Traceback" in line or "leak" in line
        ]


def _get(socket_dir: Path, path: str) -> dict[str, Any]:
    """The JSON of a GET; unlike httpx it closes its socket, too, when nobody listens."""
    connection = HTTPConnection("craftcached", timeout=10)
    with closing(socket.socket(socket.AF_UNIX)) as connection.sock, closing(connection):
        connection.sock.settimeout(10)
        connection.sock.connect(str(socket_dir / "craftcache.sock"))
        connection.request("GET", path)
        return dict(json.loads(connection.getresponse().read()))


def _commit(repo: Repo, number: int, version: int) -> None:
    files = {name: Data(content) for name, content in export_files(number, version).items()}
    repo.commit(files, lfs=FILENAMES)


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _files(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            try:
                yield path, os.lstat(path)
            except FileNotFoundError:
                continue


def _sizes_on_disk(cache_dir: Path) -> dict[tuple[int, str], int]:
    """Bytes of each file of a model and of what is on its way, by inode and path."""
    tops = [cache_dir / ".craftcache" / name for name in COUNTED]
    tops += [tree / "blobs" for tree in cache_dir.glob("models--*")]
    # A partial file is as long as it will be, and sparse.
    return {
        (status.st_ino, path): min(status.st_size, status.st_blocks * 512 or status.st_size)
        for top in tops
        for path, status in _files(top)
    }


def _bytes_on_disk(cache_dir: Path) -> int:
    """Bytes that certainly were on the disk at one moment, each file once.

    A walk takes its time: what is evicted behind it and what is fetched before it would both be
    counted, though they never were there together. What two walks find was there between them.
    """
    before = _sizes_on_disk(cache_dir)
    after = _sizes_on_disk(cache_dir)
    both = {ino: min(before[ino, path], after[ino, path]) for ino, path in before.keys() & after}
    return sum(both.values())


def _wait_idle(api: Api) -> None:
    """Wait until the daemon works on nothing; it may clear up behind requests that went away."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status, room = api.get("/status"), api.get("/room")
        if not status["requests"] and not room["claimed"]:
            return
        time.sleep(0.1)
    raise AssertionError("the daemon is not idle a minute after the last request")


def _left_in(cache_dir: Path) -> list[str]:
    """Files in staging that no later fetch resumes."""
    staging = cache_dir / ".craftcache" / "staging"
    left = [path for path in staging.rglob("*") if path.is_file()]
    resumable = {".part", ".journal"}
    return [f"left in staging: {path.name}" for path in left if path.suffix not in resumable]


def _held_locks(cache_dir: Path) -> list[str]:
    """huggingface_hub's locks that somebody holds still."""
    held = []
    for path in (cache_dir / ".locks").rglob("*.lock"):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(f"a lock is held: {path.name}")
    return held


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _resident_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")
