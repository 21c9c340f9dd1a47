"""The tests and the benchmark on this machine's GPU, in one JSON document.

``python -m tests.gpu`` needs torch and pytest, and takes what else it needs from the directory
``wheels`` beside ``tests``, if there is one. Where there is no GPU, or with ``--dry-run``, all of
it runs on an emulated device, to see that it runs. Each step is a process of its own with a time
limit, so that a device that hangs costs that step and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from tests.gpu.verdict import verdict
from tests.gpu.wheels import unpack_wheels

ROOT = Path(__file__).parents[2]

TOTAL_SECONDS = 345.0
TEST_SECONDS = 110.0
AUDIOCRAFT_SECONDS = 240.0
"""Time limits: of all of it, of the tests, and of those with AudioCraft."""

END_SECONDS = 25.0
"""Time that the benchmark has to end after it has begun its last measurement."""

DESCRIBE = """
import json, platform, sys, torch
real = torch.cuda.is_available()
print(json.dumps({
    "card": torch.cuda.get_device_name(0) if real else None,
    "memory_bytes": torch.cuda.mem_get_info(0)[1] if real else None,
    "torch": torch.__version__, "cuda": torch.version.cuda,
    "python": platform.python_version(), "kernel": platform.release(),
}))
"""


class Steps:
    """The steps of a run, and the time that is left to them."""

    def __init__(
        self, environment: dict[str, str], directory: Path, seconds: float = TOTAL_SECONDS
    ) -> None:
        self._environment = environment
        self.directory = directory
        self._end = time.monotonic() + seconds

    def seconds_left(self) -> float:
        """Time that is left, in seconds."""
        return max(1.0, self._end - time.monotonic())

    def run(self, name: str, arguments: list[str], seconds: float) -> tuple[str, str]:
        """Run Python; how it ended, or that it was cut off, and what it printed."""
        log = self.directory / f"{name}.log"
        with log.open("w") as file:
            try:
                ended = subprocess.run(
                    [sys.executable, *arguments],
                    cwd=ROOT,
                    env=self._environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=min(seconds, self.seconds_left()),
                    check=False,
                )
            except subprocess.TimeoutExpired:
                outcome = "cut off"
            else:
                outcome = f"exit {ended.returncode}"
        return outcome, log.read_text(errors="replace")


def describe(steps: Steps) -> dict[str, Any]:
    """The machine."""
    outcome, printed = steps.run("describe", ["-c", DESCRIBE], 60)
    for line in reversed(printed.splitlines()):
        if line.startswith("{"):
            described: dict[str, Any] = json.loads(line)
            return described
    return {"card": None, "error": f"{outcome}: {printed[-2000:]}"}


def run_tests(steps: Steps, file: str, seconds: float) -> dict[str, Any]:
    """The tests of a file in this directory: how they ended, and the figures that they recorded."""
    report = steps.directory / f"{file}.xml"
    options = ["-p", "no:cacheprovider", "-q", "--import-mode=importlib", f"--junitxml={report}"]
    # The project's own settings ask for plugins that such a machine lacks.
    settings = steps.directory / "pytest.ini"
    settings.write_text("[pytest]\nmarkers = timeout\njunit_family = xunit1\n")
    options += ["-c", str(settings), f"--rootdir={ROOT}", f"--confcutdir={ROOT / 'tests' / 'gpu'}"]
    tests = str(ROOT / "tests" / "gpu" / file)
    outcome, printed = steps.run(file, ["-m", "pytest", *options, tests], seconds)
    if not report.is_file():
        return {"outcome": outcome, "output": printed[-4000:]}
    cases = list(ElementTree.parse(report).iter("testcase"))  # our own
    failed = {
        case.get("name"): "".join(problem.get("message") or "" for problem in problems)[:1500]
        for case in cases
        if (problems := [*case.findall("failure"), *case.findall("error")])
    }
    skipped = [case.get("name") for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    figures = {
        each.get("name"): each.get("value") for case in cases for each in case.iter("property")
    }
    found = {"outcome": outcome, "passed": passed, "failed": failed, "skipped": skipped}
    return {**found, "figures": figures} if figures else found


def run_bench(steps: Steps, directory: Path | None, rounds: int) -> dict[str, Any]:
    """The benchmark; what it had measured where it did not come to its end."""
    written = steps.directory / "bench.json"
    seconds = steps.seconds_left() - END_SECONDS
    arguments = ["-m", "tests.bench.gpu", "--json", str(written), "--seconds", str(seconds)]
    arguments += ["--rounds", str(rounds)]
    if directory is not None:
        arguments += ["--directory", str(directory)]
    outcome, printed = steps.run("bench", arguments, steps.seconds_left())
    document = json.loads(written.read_text()) if written.is_file() else {}
    if outcome != "exit 0":
        document["output"] = printed[-4000:]
    return {"outcome": outcome, **document}


def main() -> int:
    """The command line; the exit status is 0 if all tests passed and no tensor was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="Use the emulated device.")
    parser.add_argument("--directory", type=Path, help="Where the benchmark makes its files.")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="Time for all of it.")
    parser.add_argument("--rounds", type=int, help="Rounds of each loader; 1 without a GPU, or 5.")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="craftcache-gpu-") as temporary:
        directory = Path(temporary)
        environment = unpack_wheels(directory / "wheels")
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whatever such a machine has of them
        if arguments.dry_run:
            environment["CRAFTCACHE_TEST_DRY_RUN"] = "1"
        steps = Steps(environment, directory, arguments.seconds)
        machine = describe(steps)
        dry_run = arguments.dry_run or machine["card"] is None
        tests = run_tests(steps, "test_device.py", TEST_SECONDS)
        audiocraft = run_tests(steps, "test_audiocraft.py", AUDIOCRAFT_SECONDS)
        rounds = arguments.rounds or (1 if dry_run else 5)
        bench = run_bench(steps, arguments.directory, rounds)
    told = verdict(bench, dry_run=dry_run)
    document = {
        "dry_run": dry_run,
        "machine": {**machine, "processors": os.cpu_count()},
        "tests": tests,
        "audiocraft": audiocraft,
        "bench": bench,
        "verdict": told,
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(document, indent=2))
    steps_taken = (tests, audiocraft, bench)
    is_right = all(step["outcome"] == "exit 0" for step in steps_taken)
    return 0 if is_right and not told["wrong_tensors"] else 1


if __name__ == "__main__":
    sys.exit(main())
