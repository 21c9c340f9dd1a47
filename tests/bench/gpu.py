"""From the page cache, or the disk, to a GPU: craftcache, its peers, and the link itself.

``python -m tests.bench.gpu --json FILE`` makes LM-shaped checkpoints and has each loader bring them
onto the device in turn, in one run on one machine. The link is the same number of bytes copied from
page-locked memory, which nobody can be faster than. What is reported is the median of the rounds;
every tensor of every first round is compared. FILE is written anew after each result, so that what
was measured is there even if the run is cut off. Without a GPU everything runs on an emulated
device, small, to see that it runs: those figures mean nothing.

tests.gpu runs it, and its own tests, in a few minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from craftcache.checkpoint.filling import copy_into
from craftcache.checkpoint.index import dump, parse
from craftcache.checkpoint.reader import read_index
from craftcache.checkpoint.tensors import build
from tests.bench.gpu_sharing import measure_sharing
from tests.bench.shapes import KEY, Shape, build_module, heat
from tests.gpu.targets import open_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.gpu.targets import Target

LINK_BYTES = 1 << 30
"""Page-locked memory from which the link is measured, over and over."""

OURS = "craftcache"


MODELS = (Shape("2 GB", 26, 1536), Shape("6.5 GB", 48, 2048))
SMALL_MODELS = (Shape("8 MB", 4, 192), Shape("21 MB", 6, 256))


@dataclass(slots=True)
class Results:
    """What was measured so far, and where it is written."""

    path: Path
    document: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, entry: object) -> None:
        """Add to a list of the document, and write it."""
        self.document.setdefault(kind, []).append(entry)
        self.write()

    def write(self) -> None:
        """Write the document, in one step."""
        other = self.path.with_suffix(".new")
        other.write_text(json.dumps(self.document, indent=2) + "\n")
        other.replace(self.path)


@dataclass(frozen=True, slots=True)
class GpuTiming:
    """The median of some rounds.

    Attributes:
        model: Size of the checkpoint.
        state: Where the file was: ``hot`` in the page cache, ``cold`` on the disk.
        loader: What brought it onto the device.
        seconds: Time until all of it was there.
        gigabytes_per_second: Bytes of tensors in that time, in 10**9.
        rounds: Rounds that were timed.
    """

    model: str
    state: str
    loader: str
    seconds: float
    gigabytes_per_second: float
    rounds: int


def value_of(number: int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The values of the tensor of that number: not those of another one, nor of a shifted one."""
    count = 1
    for size in shape:
        count *= size
    ramp = torch.arange(count, device=device, dtype=torch.int32).remainder_(1021 + number)
    return ramp.to(torch.float16).view(shape)


class Bench:
    """One checkpoint, as torch.save and as safetensors write it."""

    def __init__(self, model: Shape, directory: Path, target: Target) -> None:
        self.model = model
        self.target = target
        self.path = directory / f"{model.width}.bin"
        self.twin = directory / f"{model.width}.safetensors"
        self.shapes = dict(model.parameters())
        maker = target.device
        state = {
            name: value_of(number, shape, maker).cpu()
            for number, (name, shape) in enumerate(self.shapes.items())
        }
        self.nbytes = sum(tensor.nbytes for tensor in state.values())
        torch.save({KEY: state, "xp.cfg": "solver: musicgen\n", "version": "1.4"}, self.path)
        try:
            from safetensors.torch import save_file
        except ImportError:
            self.has_twin = False
        else:
            save_file(state, self.twin)
            self.has_twin = True
        self.fd = os.open(self.path, os.O_RDONLY)
        self.index = dump(read_index(self.fd))  # the daemon makes it, once

    def close(self) -> None:
        """Remove the files."""
        os.close(self.fd)
        self.path.unlink()
        self.twin.unlink(missing_ok=True)

    def load(self, *, direct: bool = False) -> Any:
        """As the client loads what the daemon has sent, or, direct, a local file."""
        index = parse(self.index, file_size=os.fstat(self.fd).st_size)
        target = self.target
        built: Any = build(index, self.fd, device=target.device, link=target.link, direct=direct)
        return built[KEY]

    def load_into(self, module: torch.nn.Module) -> Any:
        """As the client fills a model."""
        index = parse(self.index, file_size=os.fstat(self.fd).st_size)
        copy_into(index, self.fd, module, key=KEY, link_to=lambda _: self.target.link)
        return dict(module.named_parameters())

    def module(self, dtype: torch.dtype) -> torch.nn.Module:
        """A module on the device with parameters of these names and shapes."""
        device = self.target.device
        return build_module(
            {n: torch.empty(shape, dtype=dtype, device=device) for n, shape in self.shapes.items()}
        )

    def by_torch(self) -> Any:
        return torch.load(self.path, map_location=self.target.device, weights_only=True)[KEY]

    def by_torch_mapped(self) -> Any:
        state = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)[KEY]
        return {name: self._moved(tensor) for name, tensor in state.items()}

    def by_safetensors(self) -> Any:
        from safetensors.torch import load_file

        return load_file(self.twin, device=str(self.target.device))

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.target.device, copy=True)

    def link_itself(self) -> None:
        """The same bytes from page-locked memory, in as few copies as it takes."""
        device = self.target.device
        locked = locked_memory(min(LINK_BYTES, self.nbytes), locks=self.target.is_real)
        there = torch.empty(locked.numel(), dtype=torch.uint8, device=device)
        for start in range(0, self.nbytes, locked.numel()):
            length = min(locked.numel(), self.nbytes - start)
            there[:length].copy_(locked[:length], non_blocking=True)

    def wrong_tensors(self, state: Any) -> int:
        """How many are not what was saved."""
        return sum(
            not self._is_right(state.get(name), number, shape)
            for number, (name, shape) in enumerate(self.shapes.items())
        )

    def _is_right(self, tensor: torch.Tensor | None, number: int, shape: tuple[int, ...]) -> bool:
        if tensor is None:
            return False
        expected = value_of(number, shape, self.target.device)
        return torch.equal(tensor.detach().to(torch.float16), expected)

    def heat(self) -> None:
        """Bring the files into the page cache."""
        heat(self._files())

    def chill(self) -> None:
        """Drop the files from the page cache."""
        for path in self._files():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    def _files(self) -> tuple[Path, ...]:
        return (self.path, self.twin) if self.has_twin else (self.path,)


_locked: list[torch.Tensor] = []


def locked_memory(nbytes: int, *, locks: bool) -> torch.Tensor:
    """Page-locked memory, kept from one round to the next."""
    if not _locked or _locked[0].numel() < nbytes:
        _locked[:] = [torch.empty(nbytes, dtype=torch.uint8, pin_memory=locks)]
    return _locked[0][:nbytes]


class Run:
    """All measurements, as far as there is time.

    Args:
        target: The device.
        results: Where they go.
        seconds: Time that there is.
        rounds: Rounds of each loader, hot.
    """

    def __init__(self, target: Target, results: Results, seconds: float, rounds: int) -> None:
        self._target = target
        self._results = results
        self._end = time.monotonic() + seconds
        self._rounds = rounds

    def measure(self, model: Shape, directory: Path, *, cold: bool) -> None:
        """Everything about one checkpoint."""
        bench = Bench(model, directory, self._target)
        try:
            if not cold:
                self._measure_sharing(bench)
            self._measure_loads(bench)
            self._measure_filling(bench)
            if cold:
                self._measure_cold(bench)
        finally:
            bench.close()

    def _measure_loads(self, bench: Bench) -> None:
        bench.heat()
        loaders: dict[str, Callable[[], Any]] = {
            OURS: bench.load,
            "link": bench.link_itself,
            "torch.load": bench.by_torch,
            "torch.load(mmap=True).to": bench.by_torch_mapped,
        }
        if bench.has_twin:
            loaders["safetensors"] = bench.by_safetensors
        self._time_all(bench, "hot", loaders, self._rounds)

    def _measure_filling(self, bench: Bench) -> None:
        for dtype in (torch.float16, torch.float32):
            module = bench.module(dtype)
            name = f"{OURS} load_into {str(dtype).removeprefix('torch.')}"
            self._time_all(bench, "hot", {name: lambda m=module: bench.load_into(m)}, self._rounds)  # type: ignore[misc]
            del module
            gc.collect()

    def _measure_cold(self, bench: Bench) -> None:
        loaders: dict[str, Callable[[], Any]] = {
            OURS: bench.load,
            f"{OURS} past the page cache": lambda: bench.load(direct=True),
            "torch.load": bench.by_torch,
        }
        if bench.has_twin:
            loaders["safetensors"] = bench.by_safetensors
        self._time_all(bench, "cold", loaders, 2, before=bench.chill)

    def _measure_sharing(self, bench: Bench) -> None:
        """One copy for all workers, of the larger checkpoint alone."""
        if time.monotonic() > self._end:
            self._skip(bench, "sharing")
            return
        bench.heat()
        gc.collect()
        if self._target.is_real:
            torch.cuda.empty_cache()
        measured = measure_sharing(bench.path, bench.model, self._target)
        checked = {key: measured.pop(key) for key in ("wrong", "tensors")}
        self._results.add("sharing", {"model": bench.model.name, **measured})
        self._results.add("checked", {"model": bench.model.name, "what": "shared", **checked})

    def _time_all(
        self,
        bench: Bench,
        state: str,
        loaders: dict[str, Callable[[], Any]],
        rounds: int,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Time loaders in turn, and check what the first round of each brings."""
        taken: dict[str, list[float]] = {name: [] for name in loaders}
        for number in range(rounds + (state == "hot")):
            for name, load in loaders.items():
                if time.monotonic() > self._end:
                    self._skip(bench, f"{state}: {name}, from round {number} on")
                    continue
                before()
                seconds, loaded = self._time(load)
                if number or state == "cold":  # the first one also makes what is kept
                    taken[name].append(seconds)
                if not number and loaded is not None:
                    self._check(bench, f"{state}: {name}", loaded)
                del loaded
        for name, all_seconds in taken.items():
            if all_seconds:
                self._add(bench, state, name, all_seconds)

    def _time(self, load: Callable[[], Any]) -> tuple[float, Any]:
        gc.collect()
        self._target.synchronize()
        start = time.perf_counter()
        loaded = load()
        self._target.synchronize()
        return time.perf_counter() - start, loaded

    def _check(self, bench: Bench, what: str, loaded: Any) -> None:
        wrong = bench.wrong_tensors(loaded)
        entry = {"model": bench.model.name, "what": what, "wrong": wrong}
        self._results.add("checked", {**entry, "tensors": len(bench.shapes)})

    def _add(self, bench: Bench, state: str, name: str, seconds: list[float]) -> None:
        median = statistics.median(seconds)
        rate = bench.nbytes / median / 1e9
        timing = GpuTiming(bench.model.name, state, name, median, rate, len(seconds))
        self._results.add("timings", asdict(timing))

    def _skip(self, bench: Bench, what: str) -> None:
        self._results.add("skipped", {"model": bench.model.name, "what": what})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="Where to write the results.")
    parser.add_argument("--seconds", type=float, default=200.0, help="Time that there is.")
    parser.add_argument("--rounds", type=int, default=5, help="Rounds of each loader, hot.")
    parser.add_argument("--directory", type=Path, help="Where to make files; it needs 18 GB.")
    arguments = parser.parse_args()
    results = Results(arguments.json)
    with (
        open_target() as target,
        tempfile.TemporaryDirectory(dir=arguments.directory, prefix="craftcache-gpu-") as directory,
    ):
        run = Run(target, results, arguments.seconds, arguments.rounds)
        for model in MODELS if target.is_real else SMALL_MODELS:
            is_first = model in (MODELS[0], SMALL_MODELS[0])
            run.measure(model, Path(directory), cold=is_first)
    results.write()


if __name__ == "__main__":
    main()
