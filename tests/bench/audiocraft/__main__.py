"""MusicGen.get_pretrained: as it is, with ``craftcache env``, and with the patch.

``tests.bench.audiocraft`` needs ``make audiocraft``. It makes an export of musicgen-small's
shapes, puts it into a plain Hub cache and into a daemon's, and then lets each contender load it on
the CPU, in a process of its own, in turn, round after round; the files are in the page cache. The
time is from the call to the model, without imports. So that laziness hides nothing, each also
generates a little, the same samples, and says how much later and with how much memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import hf_hub_download

from tests.support.daemons import DaemonProcess
from tests.support.hub import OnDisk, hub_in_thread
from tests.upstream.environment import ENVIRONMENTS, Upstream

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1024**2
RESULTS = Path(__file__).parents[1] / "results"
PROGRAMS = Path(__file__).parent

SOURCE = "bench/musicgen-small"
FILENAMES = ("state_dict.bin", "compression_state_dict.bin")


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to have the model.

    Attributes:
        name: As shown.
        how: What child does.
        environment: What it finds the export by.
    """

    name: str
    how: str
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Result:
    """The medians of one contender's rounds; peaks are of the resident set (VmHWM).

    Attributes:
        contender: Its name.
        seconds: From get_pretrained to the model.
        times_as_fast: As upstream alone.
        peak_bytes: Until the model was ready.
        peak_ratio: To upstream alone.
        imported_bytes: The peak before, with all imports.
        seconds_to_samples: From get_pretrained to the first samples.
        samples_peak_bytes: Until then.
    """

    contender: str
    seconds: float
    times_as_fast: float
    peak_bytes: float
    peak_ratio: float
    imported_bytes: float
    seconds_to_samples: float
    samples_peak_bytes: float


def prepare(upstream: Upstream, base: Path, stack: ExitStack) -> list[Contender]:
    """Make the export, and put it where each contender finds it."""
    export, plain = base / "export", base / "plain"
    export.mkdir()
    make = (PROGRAMS / "make.py", upstream.configurations, export)
    upstream.run(*make, home=base, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
    with hub_in_thread() as hub:  # gone before anything is timed
        hub.repo(SOURCE).commit({name: OnDisk(export / name) for name in FILENAMES})
        daemon = stack.enter_context(DaemonProcess(base, HF_ENDPOINT=hub.endpoint))
        with daemon.client() as client:
            client.warm(SOURCE)
        for name in FILENAMES:
            hf_hub_download(SOURCE, name, cache_dir=plain, endpoint=hub.endpoint)
    shutil.rmtree(export)
    found_in = {
        cache: {
            "AUDIOCRAFT_CACHE_DIR": str(cache),
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": "1",
        }
        for cache in (plain, daemon.cache_dir)
    }
    ours = found_in[daemon.cache_dir]
    socket = {"CRAFTCACHE_SOCKET_DIR": str(daemon.socket_dir)}
    return [
        Contender("upstream alone", "as-it-is", found_in[plain]),
        Contender("with craftcache env", "as-it-is", ours),
        Contender("with install()", "install", ours | socket),
    ]


def contest(
    contenders: list[Contender], rounds: int, upstream: Upstream, home: Path
) -> list[Result]:
    """Let each run in turn; a first round, which brings the files into memory, does not count."""
    runs: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders}
    samples = set()
    for _ in range(rounds + 1):
        for contender in contenders:
            program = (PROGRAMS / "child.py", SOURCE, contender.how)
            run = upstream.run(*program, home=home, **contender.environment)
            samples.add(run.pop("samples"))
            runs[contender.name].append(run)
            print(".", end="", flush=True)
    if len(samples) != 1:
        raise RuntimeError("not all contenders generated the same samples")
    return summary({name: rounds_of[1:] for name, rounds_of in runs.items()})


def summary(runs: Mapping[str, list[dict[str, float]]]) -> list[Result]:
    """The medians, with their ratios to the first contender's."""
    medians = {
        name: {key: statistics.median(run[key] for run in rounds) for key in rounds[0]}
        for name, rounds in runs.items()
    }
    first = next(iter(medians.values()))
    return [
        Result(
            name,
            row["seconds"],
            first["seconds"] / row["seconds"],
            row["ready_bytes"],
            row["ready_bytes"] / first["ready_bytes"],
            row["imported_bytes"],
            row["seconds_to_samples"],
            row["samples_bytes"],
        )
        for name, row in medians.items()
    ]


def show(results: list[Result]) -> None:
    """Print the results as a table."""
    one, five, fifteen = os.getloadavg()
    print(
        f"\nget_pretrained to the CPU; the machine's load is {one:.1f}, {five:.1f}, {fifteen:.1f}"
    )
    print(
        f"{'':20} {'seconds':>8} {'faster':>8} {'peak MiB':>9} {'ratio':>6} {'imports':>8}"
        f" {'to samples':>11} {'peak MiB':>9}"
    )
    for row in results:
        print(
            f"{row.contender:20} {row.seconds:8.2f} {row.times_as_fast:7.1f}x"
            f" {row.peak_bytes / MIB:9.0f} {row.peak_ratio:6.2f} {row.imported_bytes / MIB:8.0f}"
            f" {row.seconds_to_samples:9.2f} s {row.samples_peak_bytes / MIB:9.0f}"
        )


def main() -> None:
    """Run, print and write the results."""
    parser = argparse.ArgumentParser(prog="tests.bench.audiocraft", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    upstream = ENVIRONMENTS["newest"]
    if not upstream.is_installed:
        parser.error("AudioCraft is not installed: make audiocraft")
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="bench-ac-", dir=options.directory)
        base = Path(stack.enter_context(temporary))
        results = contest(prepare(upstream, base, stack), options.rounds, upstream, base)
    show(results)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "audiocraft.json").write_text(
        json.dumps([asdict(result) for result in results], indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
