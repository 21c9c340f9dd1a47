"""What a cache with many models costs: a status, a start, a hit, and the warming of many at once.

``python -m tests.bench.scale`` makes caches of 1, 100 and 5,000 small models and measures a real
daemon on each; CPU time stands beside what a busy machine makes longer. The models are written by
the code that publishes, in a process whose fsync does nothing: durability is not what is measured
there, and 10,000 files would take a quarter of an hour with it. The daemon that is measured, and
all that it warms, has its fsyncs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

from craftcache.cache.directory import CacheDir
from craftcache.cache.publish import Verified, publish_hub
from craftcache.checkpoint.index import dump
from craftcache.checkpoint.reader import read_index
from craftcache.daemon.transport import WorkerSocket
from craftcache.digests import Digest, Promise, hash_stamped
from craftcache.sources import HubSource, parse
from craftcache.wire import Load
from tests.support.checkpoints import saved
from tests.support.daemons import DaemonProcess
from tests.support.hub import hub_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from craftcache import Client

RESULTS = Path(__file__).parent / "results" / "scale.json"
SIZES = (1, 100, 5_000)
WARMED = 500
STATUSES = 15
HITS = 500
TURNS = 7
IDLE_SECONDS = 3.0
IDLE_SHARE = 0.02
FILES = ("state_dict.bin", "compression_state_dict.bin")

LONGEST_STATUS = 0.3
LONGEST_START = 1.5
MOST_MEMORY = 150.0
MOST_OF_A_HIT = 1.2
LONGEST_WARM = 0.040


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured of a cache of one size.

    Attributes:
        models: Models in the cache.
        what: Was measured.
        value: The median of it.
        unit: Unit of the value.
        allowed: The most that it may be; None where that is not said.
    """

    models: int
    what: str
    value: float
    unit: str
    allowed: float | None


def contents(number: int) -> dict[str, bytes]:
    """The two small checkpoints of one model, which no other model has."""
    tensor = torch.full((64,), float(number))
    return {
        "state_dict.bin": saved({"best_state": {"weight": tensor}, "part": "lm"}),
        "compression_state_dict.bin": saved({"best_state": {"weight": tensor}, "part": "codec"}),
    }


def name(number: int) -> str:
    return f"bench/musicgen-{number:05}"


def write_models(root: Path, count: int) -> None:
    """Publish ``count`` models; for a process of its own, which fsyncs nothing from now on."""
    vars(os)["fsync"] = lambda _: None
    cache = CacheDir(root)
    cache.create()
    for number in range(count):
        source = parse(name(number))
        assert isinstance(source, HubSource)
        files = {}
        for filename, content in contents(number).items():
            staged = cache.staging / f"{number}-{filename}"
            staged.write_bytes(content)
            verified = Verified(hash_stamped(staged), None, 0, 0)
            sha256 = verified.digests.sha256
            with staged.open("rb") as file:
                cache.write_index(sha256, dump(read_index(file.fileno())))
            files[filename] = verified, Promise(len(content), Digest("sha256", sha256))
        publish_hub(cache, source, f"{number:040x}", files, "https://hub/resolve", is_named=True)
        for verified, _ in files.values():
            cache.discard(verified.file)


def written(base: Path, count: int) -> None:
    """The cache directory of a daemon at ``base`` with ``count`` models."""
    command = [sys.executable, "-m", __spec__.name, "--write", str(base / "cache"), str(count)]
    subprocess.run(command, check=True)


def seconds(act: Callable[[], object], rounds: int) -> float:
    """The median time that ``act`` takes."""
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        act()
        found.append(time.perf_counter() - begin)
    return median(found)


def peak_megabytes(pid: int) -> float:
    """The most memory that a process has had so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    raise LookupError(pid)


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has taken so far, in user and kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def settle(daemon: DaemonProcess) -> None:
    """Wait until a daemon is through with what it looks at after its start."""
    before = -1.0
    while cpu_seconds(daemon.pid) - before > IDLE_SHARE * IDLE_SECONDS:
        before = cpu_seconds(daemon.pid)
        time.sleep(IDLE_SECONDS)


def hit(daemon: DaemonProcess) -> float:
    """Seconds of a load of one model whose files are at hand."""
    worker = WorkerSocket(daemon.socket_dir / "worker" / "handles.sock")
    request = Load(parse(name(0)))
    worker.ask(request, patience=lambda: 15.0).close()
    taken = seconds(lambda: worker.ask(request, patience=lambda: 15.0).close(), HITS)
    worker.close()
    return taken


def started(daemon: DaemonProcess) -> tuple[float, float, Client]:
    """Seconds from a daemon's start until it says how it is, those of its CPU, and its client."""
    begin = time.perf_counter()
    daemon.start()
    client = daemon.client()
    client.status()
    return time.perf_counter() - begin, cpu_seconds(daemon.pid), client


def measured(count: int) -> Iterator[Figure]:
    """The figures of a cache of ``count`` models."""
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        written(base, count)
        with DaemonProcess(base) as daemon:  # the first start reads everything from the disk
            daemon.terminate()
            starts, cpu = [], []
            for _ in range(3):
                start, taken_by_start, client = started(daemon)
                starts.append(start)
                cpu.append(taken_by_start)
                status = seconds(client.status, STATUSES)
                settle(daemon)
                assert client.status().models == count
                taken = hit(daemon)
                memory = peak_megabytes(daemon.pid)
                daemon.terminate()
        yield Figure(count, "a start, until it answers", median(starts), "s", LONGEST_START)
        yield Figure(count, "CPU time of that start", median(cpu), "s", None)
        yield Figure(count, "a status", status, "s", LONGEST_STATUS)
        yield Figure(count, "memory of the daemon", memory, "MB", MOST_MEMORY)
        yield Figure(count, "a hit", taken, "s", None)


def hits_in_turn(count: int) -> Iterator[Figure]:
    """How long a hit takes with ``count`` models, beside one model: two daemons, asked in turn.

    While the larger one looks at all its models after its start, and when it is through with that.
    """
    with tempfile.TemporaryDirectory() as few, tempfile.TemporaryDirectory() as many:
        written(Path(few), 1)
        written(Path(many), count)
        with DaemonProcess(Path(few)) as small, DaemonProcess(Path(many)) as large:
            assert (small.client().status().models, large.client().status().models) == (1, count)
            after_start = median(hit(large) / hit(small) for _ in range(TURNS))
            settle(large)
            settled = median(hit(large) / hit(small) for _ in range(TURNS))
    yield Figure(count, "a hit after a start, beside that", after_start, "x", None)
    yield Figure(count, "a hit, beside that of one model", settled, "x", MOST_OF_A_HIT)


def warmed() -> Iterator[Figure]:
    """The warming of many small models in one command, the fsyncs of all included."""
    with (
        tempfile.TemporaryDirectory() as directory,
        hub_in_thread() as hub,
        DaemonProcess(Path(directory), HF_ENDPOINT=hub.endpoint) as daemon,
    ):
        for number in range(WARMED):
            hub.repo(name(number)).commit(contents(number))
        command = [
            *(sys.executable, "-m", "craftcache.cli", "--socket-dir", str(daemon.socket_dir)),
            *("--cache-dir", str(daemon.cache_dir), "warm", *map(name, range(WARMED))),
        ]
        begin, before = time.perf_counter(), cpu_seconds(daemon.pid)
        quiet = subprocess.DEVNULL
        subprocess.run(command, check=True, stdout=quiet, stderr=quiet)
        each = (time.perf_counter() - begin) / WARMED
        cpu = (cpu_seconds(daemon.pid) - before) / WARMED
        assert daemon.client().status().models == WARMED
    yield Figure(WARMED, "a warm of one of them", each, "s", LONGEST_WARM)
    yield Figure(WARMED, "CPU time of the daemon for it", cpu, "s", None)


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", nargs=2, metavar=("CACHE_DIR", "COUNT"))
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--no-warm", action="store_true")
    arguments = parser.parse_args()
    if arguments.write:
        write_models(Path(arguments.write[0]), int(arguments.write[1]))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    figures = [figure for count in arguments.sizes for figure in measured(count)]
    figures += [each for count in arguments.sizes if count > 1 for each in hits_in_turn(count)]
    if not arguments.no_warm:
        figures += warmed()
    print(f"{'models':>6}  {'':34}{'measured':>10}{'allowed':>9}")
    for each in figures:
        allowed = "" if each.allowed is None else f"{each.allowed:g}"
        print(f"{each.models:6}  {each.what:34}{each.value:>10.4g}{allowed:>9} {each.unit}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(each) for each in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
