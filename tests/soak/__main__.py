"""``python -m tests.soak --seconds 600``: 32 clients of three users, a quota too small for all."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.conftest import _for_tests, _not_for_tests  # what pytest would do by itself

from .run import Plan, soak


def main() -> int:
    """Run the soak and say how it went; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("the soak takes root, to be three users", file=sys.stderr)
        return 2
    home = tempfile.TemporaryDirectory(prefix="cc-soak-home-")
    for name in _not_for_tests():
        del os.environ[name]
    os.environ.update(_for_tests(Path(home.name)))
    processes = {0: 2, 12001: 3, 12002: 3}
    report = soak(Plan(arguments.seconds, processes, clients=4, seed=arguments.seed))
    for what, count in sorted(report.seen.items()):
        print(f"{count:>8}  {what}")
    print(f"{report.kills} kills, {report.looks} looks, {report.most_bytes} bytes at most")
    print(f"memory {report.memory}, descriptors {report.descriptors}")
    for fault in report.wrong:
        print(f"WRONG: {fault}", file=sys.stderr)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
