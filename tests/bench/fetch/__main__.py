"""Cold fetches: the engine against the programs that people use instead.

``tests.bench.fetch`` has every contender fetch the same file from the same nginx on loopback,
check its sha256 and fsync it. They take turns, round after round, so that a slow moment of the
machine strikes all; what counts are the ratios of the medians. Then the engine's process is
killed again and again, and a file ten times as large shows that memory does not grow.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .contenders import Aria2, Curl, Daemon, Python
from .kills import kill_repeatedly
from .origin import LargeFile, Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .contenders import Contender, Cost

MIB = 1024**2
GB = 1e9
RESULTS = Path(__file__).parents[1] / "results"

ENGINE = Python("engine", shown="craftcache")

UNCAPPED: Sequence[Contender] = (
    ENGINE,
    Daemon(),
    Python("hf_hub_download", shown="hf_hub_download + sha256"),
    Curl(),
    Aria2(),
    Python("torch.hub", shown="torch.hub with a hash"),
)

CAPPED: Sequence[Contender] = (
    ENGINE,
    Python("engine", connections=1, shown="craftcache, 1 connection"),
    Aria2(),
)


def contest(
    contenders: Sequence[Contender],
    rounds: int,
    origin: Origin,
    file: LargeFile,
    base: Path,
    *,
    capped: bool,
) -> dict[str, list[Cost]]:
    """What each contender took in each round."""
    costs: dict[str, list[Cost]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            with empty(base) as target:
                cost = contender.fetch(origin, file, Path(target), capped=capped)
            costs[contender.name].append(cost)
    return costs


def empty(base: Path) -> tempfile.TemporaryDirectory[str]:
    """A directory that is gone afterwards."""
    return tempfile.TemporaryDirectory(dir=base)


def summary(costs: dict[str, list[Cost]], file: LargeFile) -> list[dict[str, Any]]:
    """The medians, each with its ratio to the engine's."""
    ours = statistics.median(cost.seconds for cost in costs[ENGINE.name])
    rows = []
    for name, runs in costs.items():
        seconds = statistics.median(cost.seconds for cost in runs)
        lags = [cost.worst_loop_lag for cost in runs if cost.worst_loop_lag is not None]
        rows.append(
            {
                "contender": name,
                "seconds": round(seconds, 2),
                "spread": [round(cost.seconds, 2) for cost in sorted(runs, key=_seconds)],
                "times_as_long": round(seconds / ours, 2),
                "cpu_seconds_per_gb": round(
                    statistics.median(cost.cpu_seconds for cost in runs) / (file.size / GB), 2
                ),
                "peak_rss_mb": round(max(cost.peak_rss for cost in runs) / 1e6),
                "worst_loop_lag_ms": round(max(lags) * 1000, 1) if lags else None,
            }
        )
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print ``rows`` as a table."""
    print(f"\n{title}")
    print(f"{'':28} {'seconds':>8} {'ratio':>6} {'CPU s/GB':>9} {'peak MB':>8} {'lag ms':>7}")
    for row in rows:
        print(
            f"{row['contender']:28} {row['seconds']:8.2f} {row['times_as_long']:6.2f} "
            f"{row['cpu_seconds_per_gb']:9.2f} {row['peak_rss_mb']:8} "
            f"{row['worst_loop_lag_ms'] or '':>7}"
        )


def run(options: argparse.Namespace, base: Path) -> dict[str, Any]:
    """All measurements."""
    results: dict[str, Any] = {"file_bytes": options.mib * MIB, "rounds": options.rounds}
    file = LargeFile.make(base / "file", options.mib * MIB)
    with Origin(base / "origin", file) as origin:
        for title, contenders, rounds in (
            ("uncapped", UNCAPPED, options.rounds),
            ("capped", CAPPED, options.capped_rounds),
        ):
            if rounds:
                costs = contest(contenders, rounds, origin, file, base, capped=title == "capped")
                results[title] = summary(costs, file)
                show(f"{options.mib} MiB, {title}", results[title])
        if options.kills:
            with empty(base) as target:
                chance = random.Random(options.seed)
                killed = kill_repeatedly(origin, file, Path(target), options.kills, chance)
            results["killed"] = {name: round(value, 3) for name, value in asdict(killed).items()}
            print(
                f"\nkilled {killed.kills} times, by the file's size: asked for "
                f"{killed.asked_ratio:.3f}, sent {killed.sent_ratio:.3f}, of what was down asked "
                f"for again {killed.lost_ratio:.3f}"
            )
    file.path.unlink()
    if options.huge_mib:
        size = options.huge_mib * MIB
        file = LargeFile.make(base / "huge", size, sparse=True)
        with Origin(base / "huge-origin", file) as origin:
            costs = contest((ENGINE, Daemon()), 1, origin, file, base, capped=False)
        results["huge"] = summary(costs, file)
        show(f"{options.huge_mib} MiB", results["huge"])
    return results


def main() -> None:
    """Run, print and write the results."""
    parser = argparse.ArgumentParser(prog="tests.bench.fetch")
    parser.add_argument("--mib", type=int, default=2048, help="size of the file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--capped-rounds", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="for the moments of the kills")
    parser.add_argument("--huge-mib", type=int, default=20480, help="0 leaves it out")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    base = Path(tempfile.mkdtemp(prefix="bench-fetch-", dir=options.directory))
    try:
        results = run(options, base)
    finally:
        shutil.rmtree(base)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fetch.json").write_text(json.dumps(results, indent=2) + "\n")


def _seconds(cost: Cost) -> float:
    return cost.seconds


if __name__ == "__main__":
    main()
