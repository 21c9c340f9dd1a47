"""The daemon's own records, in SQLite on a local disk, never in the cache directory.

Losing them loses no model: what is cached is decided by the files alone. Here stands what was
acknowledged and not done yet, so that a restart does it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import aiosqlite

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Records", "WarmJob"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS warm_jobs (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    filenames TEXT NOT NULL,
    UNIQUE (source, filenames)
);
"""


@dataclass(frozen=True, slots=True)
class WarmJob:
    """A warm that was promised to somebody who did not wait for it.

    Attributes:
        id: In the records.
        source: As the user named it; may carry a signed query, which is why the file is private.
        filenames: Files of it; none means all that the source stands for.
    """

    id: int
    source: str
    filenames: tuple[str, ...]


class Records:
    """The database; use as an async context manager.

    Args:
        state_dir: Its directory; made if missing.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._connection: aiosqlite.Connection

    async def __aenter__(self) -> Self:
        self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._state_dir / "craftcached.sqlite"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._connection = await aiosqlite.connect(path)
        await self._connection.executescript(f"PRAGMA journal_mode = WAL; {SCHEMA}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def add_warm_job(self, source: str, filenames: tuple[str, ...]) -> WarmJob:
        """Promise a warm; durable when this returns. The same promise twice is one."""
        row = (source, json.dumps(filenames))
        await self._connection.execute(
            "INSERT OR IGNORE INTO warm_jobs (source, filenames) VALUES (?, ?)", row
        )
        await self._connection.commit()
        cursor = await self._connection.execute(
            "SELECT id FROM warm_jobs WHERE source = ? AND filenames = ?", row
        )
        found = await cursor.fetchone()
        assert found is not None  # noqa: S101  # inserted above, and nobody else deletes it
        return WarmJob(found[0], source, filenames)

    async def warm_jobs(self) -> list[WarmJob]:
        """All promised warms, oldest first."""
        rows = await self._connection.execute_fetchall(
            "SELECT id, source, filenames FROM warm_jobs ORDER BY id"
        )
        return [WarmJob(row[0], row[1], tuple(json.loads(row[2]))) for row in rows]

    async def finish_warm_job(self, job: WarmJob) -> None:
        """Forget a promise that was kept, or that cannot be."""
        await self._connection.execute("DELETE FROM warm_jobs WHERE id = ?", (job.id,))
        await self._connection.commit()
