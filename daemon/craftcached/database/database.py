"""The records of the daemon: read, remembered and noted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import sqlite3
from typing import TYPE_CHECKING, Self

from craftcache.errors import CraftcacheError, InvalidSource
from craftcache.full_disk import storage_full
from craftcache.sources import parse
from craftcache.watch_rule import WatchRule
from craftcache.wire import NotWarm, Warm, WarmOptions, WireError
from craftcache.wire.fields import Fields

from .rows import Hashing, Hold, Pin, WarmJob
from .schema import FILENAME, VERSION, dumped, open_database, set_aside

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

    import aiosqlite

__all__ = ["Database"]

log = logging.getLogger("craftcached")

_RECORD_BYTES = 64 * 1024
"""Room that a change takes at most, the log of SQLite included."""


class Database:
    """The database; use as an async context manager.

    What somebody asked to be remembered (a pin, a queued warm, a watch) is durable when the method
    returns, and an error where it cannot be. What is noted beside other work (uses, bytes fetched,
    why models are not warm) fails none of it: a full disk here is no reason to fetch a model twice.

    WarmQueue, Pins and Watches each order their own changes.

    Args:
        state_dir: Directory of the database file; made if missing.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._path = state_dir / FILENAME
        self._connection: aiosqlite.Connection
        self._fault: sqlite3.Error | None = None
        """Why the last change could not be written; None where it could."""
        # Held for one transaction: the connection has but one, which all statements go into. No
        # other lock is taken inside.
        self._changing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path
        try:
            self._connection = await open_database(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # the disk's fault, not the content's
                raise
            log.warning("%s is broken and set aside; new records begin: %s", path, error)
            set_aside(path)
            self._connection = await open_database(path)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    def is_gone(self) -> bool:
        """Whether the database's file was removed, or could not be written to the last time."""
        return self._fault is not None or not self._path.exists()

    async def heal(self) -> None:
        """Write the removed database file anew, with all that it held; or find that it is writable.

        Raises:
            OSError: The directory or the file cannot be made.
            sqlite3.Error: SQLite cannot write the file.
        """
        if self._path.exists():
            async with self._transaction() as connection:
                await connection.execute(f"PRAGMA user_version = {VERSION}")
            return
        async with self._changing:
            await self._write_anew()

    async def _write_anew(self) -> None:
        self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        log.warning("%s was removed under the daemon, and is written anew", self._path)
        fresh = await open_database(self._path)
        try:
            await self._connection.backup(fresh)
        except BaseException:
            await fresh.close()
            raise
        gone, self._connection = self._connection, fresh
        self._fault = None
        await gone.close()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        """A context for changes that are made together, or not at all; durable at its end.

        Raises:
            sqlite3.Error: They cannot be made.
        """
        async with self._changing:
            try:
                yield self._connection
                await self._connection.commit()
            except BaseException as error:
                if isinstance(error, sqlite3.Error):
                    self._fault = error
                with contextlib.suppress(sqlite3.Error):
                    await self._connection.rollback()
                raise
            self._fault = None

    @contextlib.asynccontextmanager
    async def _remembering(self) -> AsyncIterator[aiosqlite.Connection]:
        """A transaction of what somebody asked for.

        Raises:
            StorageFull: The disk has no room for it.
            CraftcacheError: It cannot be written; the daemon's own fault.
        """
        try:
            async with self._transaction() as connection:
                yield connection
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
                full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                raise storage_full(self._state_dir, _RECORD_BYTES, error=full) from error
            raise CraftcacheError(
                f"{self._path} cannot be written: {error}",
                hint="craftcache doctor says what is wrong on this node",
            ) from error

    @contextlib.asynccontextmanager
    async def _noting(self) -> AsyncIterator[aiosqlite.Connection]:
        """A transaction of what is only noted: it is logged once where it cannot be.

        Right after it, before any await, ``_fault`` says whether it was written.
        """
        had_fault = self._fault is not None
        try:
            async with self._transaction() as connection:
                yield connection
        except sqlite3.Error as error:
            if not had_fault:
                log.error("%s cannot be written, and notes in it are lost: %s", self._path, error)  # noqa: TRY400  # it says all there is to say

    async def add_warm_job(self, warm: Warm, uid: int | None = None) -> WarmJob:
        """Queue a warm; durable when this returns. An equal warm is queued once."""
        row = (warm.source.spelled, dumped(warm.options))
        async with self._remembering() as connection:
            await connection.execute(
                "INSERT OR IGNORE INTO queued_warms (source, options, uid) VALUES (?, ?, ?)",
                (*row, uid),
            )
        cursor = await self._connection.execute(
            "SELECT id, uid FROM queued_warms WHERE (source, options) = (?, ?)", row
        )
        found = await cursor.fetchone()
        assert found is not None  # noqa: S101  # inserted above, and nobody else deletes it
        return WarmJob(found[0], warm, found[1])

    async def warm_jobs(self) -> list[WarmJob]:
        """All queued warms, oldest first; one that cannot be read is left out and logged."""
        rows = await self._connection.execute_fetchall(
            "SELECT id, source, options, uid FROM queued_warms ORDER BY id"
        )
        jobs = []
        for number, source, options, uid in rows:
            try:
                warm = Warm(parse(source), WarmOptions.parse(Fields(json.loads(options))))
            except (InvalidSource, WireError, ValueError) as error:
                log.warning("the queued warm %d cannot be read and stays undone: %s", number, error)
            else:
                jobs.append(WarmJob(number, warm, uid))
        return jobs

    async def finish_warm_job(self, job: WarmJob) -> None:
        """Delete a queued warm that is done, cancelled or given up."""
        async with self._noting() as connection:
            await connection.execute("DELETE FROM queued_warms WHERE id = ?", (job.id,))

    async def pins(self) -> list[Pin]:
        """All pins."""
        rows = await self._connection.execute_fetchall(
            "SELECT key, source, is_locked, pinned_at, expires_at FROM pins"
        )
        return [Pin(row[0], row[1], bool(row[2]), row[3], row[4]) for row in rows]

    async def save_pin(self, pin: Pin) -> None:
        """Save a pin; it replaces an earlier one of the same model."""
        async with self._remembering() as connection:
            await connection.execute(
                "INSERT OR REPLACE INTO pins (key, source, is_locked, pinned_at, expires_at) "
                "VALUES (?, ?, ?, ?, ?)",
                (pin.key, pin.source, pin.is_locked, pin.pinned_at, pin.expires_at),
            )

    async def remove_pin(self, key: str) -> None:
        """Delete a pin."""
        async with self._remembering() as connection:
            await connection.execute("DELETE FROM pins WHERE key = ?", (key,))

    async def holds(self) -> list[Hold]:
        """All holds, those that have ended too."""
        rows = await self._connection.execute_fetchall(
            "SELECT key, source, uid, expires_at FROM holds"
        )
        return [Hold(*row) for row in rows]

    async def save_hold(self, hold: Hold) -> None:
        """Save a hold; it replaces the user's earlier one of the same model."""
        async with self._remembering() as connection:
            await connection.execute(
                "INSERT OR REPLACE INTO holds (key, source, uid, expires_at) VALUES (?, ?, ?, ?)",
                (hold.key, hold.source, hold.uid, hold.expires_at),
            )

    async def remove_hold(self, hold: Hold) -> None:
        """Delete a hold."""
        async with self._noting() as connection:
            await connection.execute(
                "DELETE FROM holds WHERE (key, uid, expires_at) = (?, ?, ?)",
                (hold.key, hold.uid, hold.expires_at),
            )

    async def fetched(self) -> dict[int, tuple[int, int]]:
        """The day, counted from the epoch, and the bytes fetched on it for each user, by uid."""
        rows = await self._connection.execute_fetchall("SELECT uid, day, bytes FROM fetched")
        return {row[0]: (row[1], row[2]) for row in rows}

    async def save_fetched(self, uid: int, day: int, size: int) -> None:
        """Save the bytes fetched for a user on a day; it replaces those of an earlier day."""
        async with self._noting() as connection:
            await connection.execute(
                "INSERT OR REPLACE INTO fetched (uid, day, bytes) VALUES (?, ?, ?)",
                (uid, day, size),
            )

    async def uses(self) -> dict[str, float]:
        """Time of each model's last use, in seconds since the epoch, by its manifest's key."""
        rows = await self._connection.execute_fetchall("SELECT key, used_at FROM uses")
        return {row[0]: row[1] for row in rows}

    async def save_uses(self, uses: Mapping[str, float]) -> None:
        """Save the times of last use of some models, in seconds since the epoch."""
        async with self._noting() as connection:
            await connection.executemany(
                "INSERT OR REPLACE INTO uses (key, used_at) VALUES (?, ?)", uses.items()
            )

    async def forget_use(self, key: str) -> None:
        """Delete the time of last use of a removed model."""
        async with self._noting() as connection:
            await connection.execute("DELETE FROM uses WHERE key = ?", (key,))

    async def absences(self) -> list[tuple[int, NotWarm]]:
        """Why models are not warm, with their places, the oldest first.

        What cannot be read is left out.
        """
        rows = await self._connection.execute_fetchall(
            "SELECT place, absence FROM absences ORDER BY place"
        )
        found = []
        for place, text in rows:
            with contextlib.suppress(WireError, ValueError):
                found.append((place, NotWarm.parse(Fields(json.loads(text)))))
        return found

    async def save_absences(self, come: Mapping[int, NotWarm], *, gone: Iterable[int]) -> bool:
        """Save what has changed of why models are not warm; returns whether it is saved now.

        Args:
            come: What is new, by place: what came later has a higher one.
            gone: The places of what is said no more.
        """
        async with self._noting() as connection:
            await connection.executemany(
                "DELETE FROM absences WHERE place = ?", [(place,) for place in gone]
            )
            await connection.executemany(
                "INSERT OR REPLACE INTO absences (place, absence) VALUES (?, ?)",
                # Written out in the connection's thread, as hundreds may come at once.
                ((place, json.dumps(each.to_fields())) for place, each in come.items()),
            )
        return self._fault is None

    async def models_here(self, root: Path) -> dict[str, float | None]:
        """The models that were in a cache directory, and when each was lost; None if it was not.

        What was saved of another directory is deleted.
        """
        where = (os.fspath(root),)
        async with self._noting() as connection:
            await connection.execute("DELETE FROM models_here WHERE root IS NOT ?", where)
        rows = await self._connection.execute_fetchall(
            "SELECT source, lost_at FROM models_here WHERE root = ?", where
        )
        return {row[0]: row[1] for row in rows}

    async def save_models_here(
        self, root: Path, changed: Mapping[str, float | None], *, gone: Iterable[str]
    ) -> bool:
        """Save which models have come into a cache directory, were lost, or have gone since.

        Args:
            root: The cache directory.
            changed: The models that have come or were lost, as in what ``models_here`` returns.
            gone: The models of which nothing is said any more.

        Returns:
            Whether all of it is saved now.
        """
        async with self._noting() as connection:
            await connection.executemany(
                "DELETE FROM models_here WHERE source = ?", [(source,) for source in gone]
            )
            await connection.executemany(
                "INSERT OR REPLACE INTO models_here (source, root, lost_at) VALUES (?, ?, ?)",
                [(source, os.fspath(root), lost_at) for source, lost_at in changed.items()],
            )
        return self._fault is None

    async def hashings(self) -> list[Hashing]:
        """The last hashing of each file that was hashed again since it came."""
        rows = await self._connection.execute_fetchall(
            "SELECT path, sha256, hashed_at, is_broken FROM hashings"
        )
        return [Hashing(row[0], row[1], row[2], bool(row[3])) for row in rows]

    async def save_hashing(self, hashing: Hashing) -> None:
        """Save a hashing; it replaces the one before of the same path."""
        async with self._noting() as connection:
            await connection.execute(
                "INSERT OR REPLACE INTO hashings (path, sha256, hashed_at, is_broken)"
                " VALUES (?, ?, ?, ?)",
                (hashing.path, hashing.sha256, hashing.hashed_at, hashing.is_broken),
            )

    async def forget_hashings(self, paths: Iterable[str]) -> None:
        """Delete the hashings of files that are not published any more."""
        async with self._noting() as connection:
            await connection.executemany(
                "DELETE FROM hashings WHERE path = ?", [(path,) for path in paths]
            )

    async def watch_rules(self) -> list[WatchRule]:
        """The rules of all watches that were added through the admin socket."""
        rows = await self._connection.execute_fetchall("SELECT rule FROM watches")
        return [WatchRule.parse(json.loads(row[0])) for row in rows]

    async def save_watch_rule(self, rule: WatchRule) -> None:
        """Save a watch's rule; it replaces an earlier one of the same name."""
        async with self._remembering() as connection:
            await connection.execute(
                "INSERT OR REPLACE INTO watches (name, rule) VALUES (?, ?)",
                (rule.name, json.dumps(rule.to_fields())),
            )

    async def remove_watch_rule(self, name: str) -> None:
        """Delete a watch's rule."""
        async with self._remembering() as connection:
            await connection.execute("DELETE FROM watches WHERE name = ?", (name,))

    async def held_watches(self) -> set[str]:
        """Names of the watches that were rolled back and not resumed since."""
        rows = await self._connection.execute_fetchall("SELECT name FROM held_watches")
        return {row[0] for row in rows}

    async def hold_watch(self, name: str) -> None:
        """Record that a watch was rolled back, so that it publishes nothing until resumed."""
        async with self._remembering() as connection:
            await connection.execute(
                "INSERT OR REPLACE INTO held_watches (name) VALUES (?)", (name,)
            )

    async def release_watch(self, name: str) -> None:
        """Record that a watch was resumed."""
        async with self._remembering() as connection:
            await connection.execute("DELETE FROM held_watches WHERE name = ?", (name,))
