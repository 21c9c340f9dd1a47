"""What it costs to be killed again and again: bytes asked for and sent beyond the file's own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .contenders import CHILD

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from .origin import LargeFile, Origin

__all__ = ["Resumption", "kill_repeatedly"]


@dataclass(frozen=True, slots=True)
class Resumption:
    """The outcome of a download that was killed ``kills`` times.

    Attributes:
        kills: How often.
        asked_ratio: Bytes of all ranges that were asked for, in full, by the file's size. A range
            under way when its process died counts twice as far as it was not down yet.
        sent_ratio: Bytes that the origin sent, by the file's size.
        lost_ratio: Bytes that the process had written and that were asked for again, likewise.
    """

    kills: int
    asked_ratio: float
    sent_ratio: float
    lost_ratio: float


def kill_repeatedly(
    origin: Origin, file: LargeFile, base: Path, kills: int, chance: random.Random
) -> Resumption:
    """Fetch ``file``, killing the process with SIGKILL after random shares of what is missing."""
    before = origin.traffic()
    command = [sys.executable, "-m", CHILD, "engine-told", origin.url(capped=False)]
    arguments = [*command, str(file.size), file.sha256, str(base), "8"]
    known = lost = 0
    for left in range(kills, -1, -1):
        share = chance.uniform(0, 2 / (left + 1)) if left else 2.0
        kill_at = known + share * (file.size - known)
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = (int(line) for line in process.stdout if line.strip().isdecimal())
            first = next(lines, known)
            lost += max(0, known - first)
            known = first
            for known in lines:
                if known >= kill_at:
                    break
            process.kill()
    if not (base / "done").exists():
        raise SystemExit("the download that was killed did not end")
    after = origin.traffic()
    return Resumption(
        kills,
        (after.asked - before.asked) / file.size,
        (after.sent - before.sent) / file.size,
        lost / file.size,
    )
