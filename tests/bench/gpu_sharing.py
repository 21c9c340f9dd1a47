"""One copy of a checkpoint in a GPU's memory for eight workers: the time and the memory it takes.

A source of files stands in for the daemon. On a machine without a GPU all of it runs on memory
files, and its figures mean nothing.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tests.support.gpu.processes import GpuServiceProcess, GpuWorker
from tests.support.gpu.source import file_source

if TYPE_CHECKING:
    from tests.bench.shapes import Shape
    from tests.gpu.targets import Target

WORKERS = 8

AGAIN = 5
"""How often the second worker loads it again."""

NAME = "state_dict.bin"


def real_service(socket_dir: Path) -> list[str]:
    """The command of the service of the first GPU."""
    return [sys.executable, "-m", "craftcached.gpu", "--socket-dir", str(socket_dir)]


def measure_sharing(path: Path, model: Shape, target: Target) -> dict[str, Any]:
    """Time of the first and of the later workers in seconds, and memory in copies of the file.

    All but the first and the last have imported what they need before, as programs do at their top.
    """
    device = str(target.device)
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cc-")))
        # No digest: to hash it takes longer than all that is measured.
        stack.enter_context(file_source(base, {NAME: path}, {NAME: "e" * 64}))
        command = real_service(base) if target.is_real else None
        stack.enter_context(GpuServiceProcess(base, command=command))
        workers = [
            GpuWorker(base, base / "cache", device=device, imports=0 < number < WORKERS - 1)
            for number in range(WORKERS)
        ]
        for worker in workers:
            stack.enter_context(worker)
        before = _used(target)
        loads = [worker.load(parts=["lm"]) for worker in workers]
        taken = _used(target) - before
        compared = [
            worker.ask("compare", layers=model.layers, width=model.width) for worker in workers
        ]
        again = [workers[1].load(parts=["lm"])["seconds"] for _ in range(AGAIN)]
        blocks = {tuple(load["blocks"]) for load in loads}
    size = path.stat().st_size
    return {
        "first_seconds": loads[0]["seconds"],
        "second_seconds": loads[1]["seconds"],
        "later_seconds": [load["seconds"] for load in loads[2:-1]],
        "with_imports_seconds": loads[-1]["seconds"],
        "again_seconds": statistics.median(again),
        "shared": all(load["shared"] == ["lm"] for load in loads),
        "copies": taken / size if target.is_real else float(len(blocks)),
        "wrong": sum(each["wrong"] + each["unknown"] for each in compared),
        "tensors": sum(each["tensors"] for each in compared),
    }


def _used(target: Target) -> int:
    """Memory of the device that is in use, by whomever."""
    if not target.is_real:
        return 0
    free, total = torch.cuda.mem_get_info(target.device)
    return total - free
