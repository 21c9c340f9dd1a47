"""How often the bytes in memory are looked at, by who asks and what a look takes."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from craftcache.cache.manifest import FileRecord
from craftcached.residency.residency import Residency
from craftcached.residency.total import LOOK_SHARE, ResidentTotal

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 1, 1, tzinfo=UTC)
BYTES = 5 * os.sysconf("SC_PAGE_SIZE")


class SlowClock:
    """A clock by which each look takes as long as it is told to."""

    def __init__(self, look: float) -> None:
        self.now = 0.0
        self.look = look

    def __call__(self) -> float:
        self.now += self.look / 2  # it is asked before the decision, too
        return self.now


def record(path: Path) -> FileRecord:
    return FileRecord(path.name, str(path), "0" * 64, BYTES, "https://host", NOON, 1, 1)


async def test_a_long_look_stands_for_a_while(tmp_path: Path) -> None:
    file = record(tmp_path / "file")
    clock = SlowClock(1.0)
    async with Residency() as residency:
        total = ResidentTotal(residency, lambda each: each.path, clock)
        (tmp_path / "file").write_bytes(bytes(BYTES))
        assert await total.of([file]) == BYTES
        (tmp_path / "file").unlink()
        assert await total.of([file]) == BYTES
        assert await total.of([file, file]) == 0  # other files are looked at
        (tmp_path / "file").write_bytes(bytes(BYTES))
        assert await total.of([file, file]) == 0
        clock.now += clock.look / LOOK_SHARE
        assert await total.of([file, file]) == 2 * BYTES


async def test_a_short_look_is_taken_each_time(tmp_path: Path) -> None:
    file = record(tmp_path / "file")
    async with Residency() as residency:
        total = ResidentTotal(residency, lambda each: each.path, SlowClock(0.001))
        (tmp_path / "file").write_bytes(bytes(BYTES))
        assert await total.of([file]) == BYTES
        (tmp_path / "file").unlink()
        assert await total.of([file]) == 0
