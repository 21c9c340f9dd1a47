"""The daemon's own records, in SQLite on a local disk, never in the cache directory.

Losing them loses no model: what is cached is decided by the files alone. Here stands what was
acknowledged and not done yet, so that a restart does it, which models are pinned, when each was
last used, and which directories are watched.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import aiosqlite

from craftcache.watch_rule import WatchRule

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Pin", "Database", "WarmJob"]

log = logging.getLogger("craftcached")

WARM_JOBS = """
CREATE TABLE IF NOT EXISTS warm_jobs (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    filenames TEXT NOT NULL,
    resident INTEGER NOT NULL,
    pair_only INTEGER NOT NULL,
    UNIQUE (source, filenames, resident, pair_only)
);
"""

SCHEMA = f"""
{WARM_JOBS}
CREATE TABLE IF NOT EXISTS pins (
    key TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    is_locked INTEGER NOT NULL,
    pinned_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS uses (
    key TEXT PRIMARY KEY,
    used_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS watches (
    name TEXT PRIMARY KEY,
    rule TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS held_watches (
    name TEXT PRIMARY KEY
);
"""

UPGRADE = (
    "BEGIN; ALTER TABLE warm_jobs RENAME TO earlier_warm_jobs;",
    WARM_JOBS,
    "INSERT INTO warm_jobs SELECT id, source, filenames, resident, 0 FROM earlier_warm_jobs;",
    "DROP TABLE earlier_warm_jobs; COMMIT;",
)
"""Of the records of a release that knew no other needs of a model than its pair."""


@dataclass(frozen=True, slots=True)
class WarmJob:
    """A warm that was promised to somebody who did not wait for it.

    Attributes:
        id: In the records.
        source: As the user named it; may carry a signed query, which is why the file is private.
        filenames: Files of it; none means all that the source stands for.
        resident: Whether to bring them into memory as well.
        pair_only: Whether to leave out what the model needs beyond them.
    """

    id: int
    source: str
    filenames: tuple[str, ...]
    resident: bool = False
    pair_only: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """A model that stays until it is unpinned.

    Attributes:
        key: Of its manifest.
        source: As shown to people.
        is_locked: Whether its pages are to stay in memory too.
        pinned_at: Seconds since the epoch.
    """

    key: str
    source: str
    is_locked: bool
    pinned_at: float


class Database:
    """The database; use as an async context manager.

    Args:
        state_dir: Its directory; made if missing.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._path = state_dir / "craftcached.sqlite"
        self._connection: aiosqlite.Connection

    async def __aenter__(self) -> Self:
        self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path
        try:
            self._connection = await _open(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # the disk's fault, not the content's
                raise
            log.warning("%s is broken and set aside; new records begin: %s", path, error)
            _set_aside(path)
            self._connection = await _open(path)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    def is_gone(self) -> bool:
        """Whether the database's file was removed."""
        return not self._path.exists()

    async def heal(self) -> None:
        """Put the database back with all that it held.

        Raises:
            OSError: That cannot be done.
            sqlite3.Error: Likewise.
        """
        self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        log.warning("%s was removed under the daemon, and is written anew", self._path)
        fresh = await _open(self._path)
        try:
            await self._connection.backup(fresh)
        except BaseException:
            await fresh.close()
            raise
        gone, self._connection = self._connection, fresh
        await gone.close()

    async def add_warm_job(
        self,
        source: str,
        filenames: tuple[str, ...],
        *,
        resident: bool = False,
        pair_only: bool = False,
    ) -> WarmJob:
        """Promise a warm; durable when this returns. The same promise twice is one."""
        row = (source, json.dumps(filenames), resident, pair_only)
        await self._connection.execute(
            "INSERT OR IGNORE INTO warm_jobs (source, filenames, resident, pair_only) "
            "VALUES (?, ?, ?, ?)",
            row,
        )
        await self._connection.commit()
        cursor = await self._connection.execute(
            "SELECT id FROM warm_jobs "
            "WHERE (source, filenames, resident, pair_only) = (?, ?, ?, ?)",
            row,
        )
        found = await cursor.fetchone()
        assert found is not None  # noqa: S101  # inserted above, and nobody else deletes it
        return WarmJob(found[0], source, filenames, resident, pair_only)

    async def warm_jobs(self) -> list[WarmJob]:
        """All promised warms, oldest first."""
        rows = await self._connection.execute_fetchall(
            "SELECT id, source, filenames, resident, pair_only FROM warm_jobs ORDER BY id"
        )
        return [
            WarmJob(row[0], row[1], tuple(json.loads(row[2])), bool(row[3]), bool(row[4]))
            for row in rows
        ]

    async def finish_warm_job(self, job: WarmJob) -> None:
        """Forget a promise that was kept, or that cannot be."""
        await self._connection.execute("DELETE FROM warm_jobs WHERE id = ?", (job.id,))
        await self._connection.commit()

    async def pins(self) -> list[Pin]:
        """All pins."""
        rows = await self._connection.execute_fetchall(
            "SELECT key, source, is_locked, pinned_at FROM pins"
        )
        return [Pin(row[0], row[1], bool(row[2]), row[3]) for row in rows]

    async def save_pin(self, pin: Pin) -> None:
        """Keep a pin, in place of an earlier one of the same model."""
        await self._connection.execute(
            "INSERT OR REPLACE INTO pins (key, source, is_locked, pinned_at) VALUES (?, ?, ?, ?)",
            (pin.key, pin.source, pin.is_locked, pin.pinned_at),
        )
        await self._connection.commit()

    async def remove_pin(self, key: str) -> None:
        """Forget a pin."""
        await self._connection.execute("DELETE FROM pins WHERE key = ?", (key,))
        await self._connection.commit()

    async def uses(self) -> dict[str, float]:
        """When each model was last used, in seconds since the epoch, by its manifest's key."""
        rows = await self._connection.execute_fetchall("SELECT key, used_at FROM uses")
        return {row[0]: row[1] for row in rows}

    async def save_uses(self, uses: Mapping[str, float]) -> None:
        """Keep later uses of some models."""
        await self._connection.executemany(
            "INSERT OR REPLACE INTO uses (key, used_at) VALUES (?, ?)", uses.items()
        )
        await self._connection.commit()

    async def forget_use(self, key: str) -> None:
        """Forget a model that is gone."""
        await self._connection.execute("DELETE FROM uses WHERE key = ?", (key,))
        await self._connection.commit()

    async def watch_rules(self) -> list[WatchRule]:
        """All watches that were added."""
        rows = await self._connection.execute_fetchall("SELECT rule FROM watches")
        return [WatchRule.parse(json.loads(row[0])) for row in rows]

    async def save_watch_rule(self, rule: WatchRule) -> None:
        """Keep a watch, in place of an earlier one of its name."""
        await self._connection.execute(
            "INSERT OR REPLACE INTO watches (name, rule) VALUES (?, ?)",
            (rule.name, json.dumps(rule.to_fields())),
        )
        await self._connection.commit()

    async def remove_watch_rule(self, name: str) -> None:
        """Forget a watch."""
        await self._connection.execute("DELETE FROM watches WHERE name = ?", (name,))
        await self._connection.commit()

    async def held_watches(self) -> set[str]:
        """The names of the watches that were rolled back and not resumed."""
        rows = await self._connection.execute_fetchall("SELECT name FROM held_watches")
        return {row[0] for row in rows}

    async def hold_watch(self, name: str) -> None:
        """Remember that a watch was rolled back."""
        await self._connection.execute(
            "INSERT OR REPLACE INTO held_watches (name) VALUES (?)", (name,)
        )
        await self._connection.commit()

    async def release_watch(self, name: str) -> None:
        """Forget that it was."""
        await self._connection.execute("DELETE FROM held_watches WHERE name = ?", (name,))
        await self._connection.commit()


async def _open(path: Path) -> aiosqlite.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = await aiosqlite.connect(path)
    try:
        await connection.executescript(f"PRAGMA journal_mode = WAL; {SCHEMA}")
        columns = await connection.execute_fetchall(
            "SELECT name FROM pragma_table_info('warm_jobs')"
        )
        if "pair_only" not in {column[0] for column in columns}:
            await connection.executescript("".join(UPGRADE))
    except BaseException:
        await connection.close()  # or its thread keeps the process from ending
        raise
    return connection


def _set_aside(path: Path) -> None:
    os.replace(path, f"{path}.broken")
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")
