"""How long it takes to look into a checkpoint, and in how much memory, beside torch.

``python -m tests.bench.inspection`` measures the process that inspects, until it could look at a
file; the first warm of a small export after a daemon's start; and an index of as many tensors as
one may have, made by the daemon's inspector within its limits. Torch does beside it what it would
do in our place: it is imported, and loads the same file by its weights-only rules.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

import craftcache
import craftcached
from craftcache.checkpoint.index import MAX_TENSORS
from craftcached.inspect import Inspector
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import hub_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results" / "inspection.json"
SOURCE = "bench/musicgen-tiny"
ROUNDS = 5

_STATUS = "print(open('/proc/self/status').read())"


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of what was measured, ours and torch's.

    Attributes:
        what: Was done.
        unit: Of both numbers.
        ours: Of the reader and its process.
        torch: Of torch, where it does the same.
        allowed: The most that ours may be.
    """

    what: str
    unit: str
    ours: float
    torch: float | None
    allowed: float


def seconds(act: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The median time that ``act`` takes."""
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        act()
        found.append(time.perf_counter() - begin)
    return median(found)


def ready(*options: str, script: str, arguments: tuple[str, ...] = ()) -> tuple[float, float]:
    """Seconds until a new Python has run ``script`` and ended, and the megabytes that it took."""
    command = [sys.executable, *options, "-c", f"{script}; {_STATUS}", *arguments]
    peaks: list[int] = []

    def start() -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.extend(int(found) for found in re.findall(r"VmHWM:\s+(\d+) kB", done.stdout))

    return seconds(start), median(peaks) / 1000


def processes() -> list[Figure]:
    """The process that inspects, and one that has imported torch."""
    roots = tuple(os.path.dirname(each.__path__[0]) for each in (craftcache, craftcached))
    script = "import sys; sys.path[:0] = sys.argv[1:]; import craftcached.inspect.forkserver"
    ours, our_peak = ready("-I", "-S", script=script, arguments=roots)
    theirs, their_peak = ready(script="import torch")
    return [
        Figure("a process that could inspect", "s", ours, theirs, 0.15),
        Figure("its memory", "MB", our_peak, their_peak, 40),
    ]


def first_warm() -> Figure:
    """The first warm of the small export, each time after a new daemon's start."""

    def warm() -> float:
        with (
            tempfile.TemporaryDirectory() as directory,
            hub_in_thread() as hub,
            DaemonProcess(Path(directory), HF_ENDPOINT=hub.endpoint) as daemon,
        ):
            hub.repo(SOURCE).commit({name: path.read_bytes() for name, path in files.items()})
            client = daemon.client()
            begin = time.perf_counter()
            client.warm(SOURCE)
            return time.perf_counter() - begin

    files = EXPORT_FILES
    size = sum(path.stat().st_size for path in files.values()) / 1e6
    what = f"the first warm after a start, {size:.1f} MB"
    return Figure(what, "s", median(warm() for _ in range(ROUNDS)), None, 0.5)


def largest_index() -> Figure:
    """An index of as many tensors as there may be."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "state_dict.bin"
        names = (f"transformer.layers.{number}.weight" for number in range(MAX_TENSORS))
        torch.save({"best_state": {name: torch.zeros(2, 3) for name in names}}, path)

        async def inspect() -> None:
            async with Inspector() as inspector:
                await inspector.inspect(path, source="bench")

        ours = seconds(lambda: asyncio.run(inspect()))
        theirs = seconds(lambda: torch.load(path, weights_only=True))
    return Figure(f"an index of {MAX_TENSORS:,} tensors", "s", ours, theirs, 4)


def main() -> None:
    """Measure, print and keep the figures."""
    figures = [*processes(), first_warm(), largest_index()]
    print(f"{'':40}{'ours':>9}{'torch':>9}{'allowed':>9}")
    for each in figures:
        theirs = "" if each.torch is None else f"{each.torch:.3g}"
        print(f"{each.what:40}{each.ours:>9.3g}{theirs:>9}{each.allowed:>9g} {each.unit}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(each) for each in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
