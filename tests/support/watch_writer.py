"""A training process that overwrites an export in place by torch.save, as AudioCraft does.

Reads commands, one a line: ``DIRECTORY FIRST LAST`` saves a pair for each number, without a pause;
answers each with ``done``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def save(directory: Path, value: int) -> None:
    for part, name in (("lm", "state_dict.bin"), ("compression", "compression_state_dict.bin")):
        package = {
            "best_state": {"x": torch.full((20_000,), float(value))},
            "xp.cfg": f"part: {part}\nvalue: {value}\n",
            "version": "1.3.0",
            "exported": True,
        }
        torch.save(package, directory / name)


def main() -> None:
    for line in sys.stdin:
        directory, first, last = line.split()
        for value in range(int(first), int(last) + 1):
            save(Path(directory), value)
        print("done", flush=True)


if __name__ == "__main__":
    main()
