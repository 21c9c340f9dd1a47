"""Hot loads: client.load against torch.load, its mmap mode and safetensors.

``tests.bench.load`` makes LM-shaped checkpoints, warms them through a real daemon, and then
loads each in turn with all of the peers, so that a ratio compares like with like on one machine
in one run; torch.load is what AudioCraft's own _get_state_dict calls. What is reported is the
median of the rounds. Loading is measured twice: alone, and with a copy into an existing module,
so that laziness hides nothing. Then worker processes load at once, and their memory is added up.
Last comes what importing craftcache adds to the start of an interpreter.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from craftcache import Client
from tests.bench.shapes import KEY, Shape, build_module, heat
from tests.support.daemons import DaemonProcess
from tests.support.hub import hub_in_thread
from tests.support.hub.content import OnDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.support.hub import TestHub

RESULTS = Path(__file__).parent / "results"
FILENAME = "state_dict.bin"

TURN_SECONDS = 0.1
"""The least time that a loader is timed for at a stretch."""


SHAPES = (Shape("0.84 GB", 24, 1024), Shape("2 GB", 26, 1536), Shape("6.5 GB", 48, 2048))


@dataclass(frozen=True, slots=True)
class Timing:
    """The median of some rounds, in milliseconds."""

    shape: str
    what: str
    loader: str
    milliseconds: float
    tensors: int
    ratio: float = 1.0
    """How many times as long as craftcache's."""


def time_in_turn(loaders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each loader; what is returned is freed in between.

    The loaders take turns. A turn is one load, or as many as fit into TURN_SECONDS: a load of a
    millisecond would otherwise be timed by how cold the peers leave the processor's caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(rounds):
        for name, load in loaders.items():
            gc.collect()
            spent = 0.0
            while spent < TURN_SECONDS:
                start = time.perf_counter()
                result = load()
                seconds[name].append(time.perf_counter() - start)
                spent += seconds[name][-1]
                del result
    return {name: statistics.median(values) for name, values in seconds.items()}


class Bench:
    """One checkpoint, warm in a daemon's cache."""

    def __init__(self, client: Client, source: str, shape: Shape, path: Path, twin: Path) -> None:
        self.client = client
        self.source = source
        self.shape = shape
        self.path = path
        self.twin = twin

    def heat(self) -> None:
        """Bring both files into the page cache."""
        heat((self.path, self.twin))

    def time_loads(self, rounds: int) -> list[Timing]:
        loaders: dict[str, Callable[[], object]] = {
            "craftcache": self.load,
            "torch.load": lambda: torch.load(self.path, map_location="cpu"),
            "torch.load(mmap=True)": lambda: torch.load(self.path, map_location="cpu", mmap=True),
            "safetensors": lambda: safetensors.torch.load_file(self.twin),
        }
        return self._timings("load", time_in_turn(loaders, rounds))

    def time_copies(self, rounds: int) -> list[Timing]:
        """Loads with a copy of every weight into a module."""
        state = self.load()[KEY]
        module = build_module({name: torch.zeros_like(each) for name, each in state.items()})
        copy = module.load_state_dict
        loaders: dict[str, Callable[[], object]] = {
            "craftcache": lambda: copy(self.load()[KEY]),
            "craftcache load_into": lambda: self.client.load_into(module, self.source, key=KEY),
            "torch.load": lambda: copy(torch.load(self.path)[KEY]),
            "torch.load(mmap=True)": lambda: copy(torch.load(self.path, mmap=True)[KEY]),
            "safetensors": lambda: copy(safetensors.torch.load_file(self.twin)),
        }
        return self._timings("load + load_state_dict", time_in_turn(loaders, rounds))

    def load(self) -> Any:
        return self.client.load(self.source, device="cpu", parts=("lm",)).lm

    def _timings(self, what: str, seconds: Mapping[str, float]) -> list[Timing]:
        tensors = sum(1 for _ in self.shape.parameters())
        own = seconds["craftcache"]
        return [
            Timing(self.shape.name, what, name, value * 1000, tensors, value / own)
            for name, value in seconds.items()
        ]


@dataclass(frozen=True, slots=True)
class Workers:
    """Processes that load at once.

    Attributes:
        loader: How.
        count: Of processes.
        seconds: Until the last had loaded and read every page of its weights.
        bytes_per_file_byte: By how much their proportional memory (PSS) grew in sum.
    """

    loader: str
    count: int
    seconds: float
    bytes_per_file_byte: float


def run_workers(bench: Bench, loader: str, count: int) -> Workers:
    """Start ``count`` processes, let them load at the same moment, add up their memory."""
    command = [sys.executable, "-m", "tests.bench.load", "--worker", loader, bench.source]
    command += [str(bench.client.socket_dir), str(bench.path)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    pids = [worker.pid for worker in workers]
    _wait_for_line(workers)
    before = sum(map(_pss, pids))
    start = time.perf_counter()
    _tell(workers)
    _wait_for_line(workers)
    seconds = time.perf_counter() - start
    grown = sum(map(_pss, pids)) - before
    for worker in workers:
        worker.communicate("\n")
    return Workers(loader, count, seconds, grown / bench.path.stat().st_size)


def work(loader: str, source: str, socket_dir: str, path: str) -> None:
    """One of the processes."""
    client = Client(socket_dir=socket_dir, fallback="none")
    client.status()
    print("ready", flush=True)
    sys.stdin.readline()
    if loader == "craftcache":
        checkpoint: Any = client.load(source, parts=("lm",)).lm
    else:
        checkpoint = torch.load(path, mmap="mmap" in loader)
    for tensor in checkpoint[KEY].values():
        tensor.view(torch.uint8).flatten()[:: os.sysconf("SC_PAGE_SIZE")].max()
    print("done", flush=True)
    sys.stdin.readline()


def _tell(workers: list[subprocess.Popen[str]]) -> None:
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()


def _wait_for_line(workers: list[subprocess.Popen[str]]) -> None:
    for worker in workers:
        assert worker.stdout is not None
        if not worker.stdout.readline():
            raise RuntimeError("a worker has died")


def _pss(pid: int) -> int:
    """Bytes of memory, each page divided by the number of processes that share it."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Pss")


def make_checkpoint(shape: Shape, path: Path, twin: Path) -> None:
    """The same tensors as torch.save and as safetensors write them."""
    state = {name: torch.full(size, 0.5, dtype=torch.float16) for name, size in shape.parameters()}
    torch.save({KEY: state, "xp.cfg": "solver: musicgen\n", "version": "1.4"}, path)
    safetensors.torch.save_file(state, twin)


STATEMENTS = ("import craftcache", "import craftcache; craftcache.Client()")
"""What a worker begins with; the modules behind a name are imported with its first use."""


def time_imports(rounds: int) -> dict[str, float]:
    """The milliseconds by which each of STATEMENTS delays an interpreter that does nothing."""
    seconds: dict[str, list[float]] = {statement: [] for statement in ("pass", *STATEMENTS)}
    for _ in range(rounds):
        for statement, taken in seconds.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            taken.append(time.perf_counter() - start)
    bare, *imported = map(statistics.median, seconds.values())
    return {
        statement: (taken - bare) * 1000
        for statement, taken in zip(STATEMENTS, imported, strict=True)
    }


def run(shapes: list[Shape], *, rounds: int, workers: int, directory: Path) -> dict[str, Any]:
    """All of it; files are made under ``directory``."""
    timings: list[Timing] = []
    at_once: list[Workers] = []
    with ExitStack() as stack:
        with hub_in_thread() as hub:  # gone before anything is timed
            daemon = stack.enter_context(DaemonProcess(directory, HF_ENDPOINT=hub.endpoint))
            client = Client(socket_dir=daemon.socket_dir, cache_dir=daemon.cache_dir)
            benches = [prepare(shape, hub, client, directory) for shape in shapes]
        for bench in benches:
            bench.heat()
            timings += show(bench.time_loads(rounds))
            timings += show(bench.time_copies(rounds))
        for loader in ("craftcache", "torch.load(mmap=True)", "torch.load") if workers else ():
            benches[0].heat()  # larger ones may have taken its place in memory
            at_once.append(run_workers(benches[0], loader, workers))
            print(_line_of(at_once[-1]), flush=True)
    imports = time_imports(2 * rounds)
    print()
    for statement, milliseconds in imports.items():
        print(f"  {statement}: {milliseconds:.1f} ms more than bare Python", flush=True)
    return {
        "timings": list(map(asdict, timings)),
        "workers": list(map(asdict, at_once)),
        "imports": imports,
    }


def prepare(shape: Shape, hub: TestHub, client: Client, directory: Path) -> Bench:
    """A checkpoint of that shape in the daemon's cache, and its safetensors twin."""
    source = f"bench/lm-{shape.width}"
    origin, twin = directory / FILENAME, directory / f"{shape.width}.safetensors"
    make_checkpoint(shape, origin, twin)
    hub.repo(source).commit({FILENAME: OnDisk(origin)})
    client.warm(source, filenames=(FILENAME,))
    origin.unlink()
    return Bench(client, source, shape, client.resolve(source, FILENAME), twin)


def show(timings: list[Timing]) -> list[Timing]:
    """Print the timings of one kind, and pass them on."""
    print(f"\n{timings[0].what}, {timings[0].shape}")
    for timing in timings:
        each = timing.milliseconds / timing.tensors * 1000
        print(
            f"  {timing.loader:24}{timing.milliseconds:10.2f} ms{each:10.2f} us a tensor"
            f"{timing.ratio:9.2f}x craftcache's",
            flush=True,
        )
    return timings


def _line_of(workers: Workers) -> str:
    return (
        f"  {workers.count} workers, {workers.loader:24}{workers.seconds:8.2f} s"
        f"{workers.bytes_per_file_byte:8.2f}x the file in memory"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", action="append", choices=[shape.name for shape in SHAPES])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(*arguments.worker)
        return
    shapes = [shape for shape in SHAPES if not arguments.shape or shape.name in arguments.shape]
    with tempfile.TemporaryDirectory(prefix="craftcache-bench-") as directory:
        results = run(
            shapes,
            rounds=arguments.rounds,
            workers=arguments.workers,
            directory=Path(directory),
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "load.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
