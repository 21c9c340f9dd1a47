"""The tables of the database, their version, and what earlier releases had instead."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from typing import TYPE_CHECKING, Final

import aiosqlite

from craftcache.cache.plain_file import read_plain
from craftcache.errors import Unavailable
from craftcache.wire import WarmOptions

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FILENAME", "VERSION", "check_version", "dumped", "open_database", "set_aside"]

FILENAME = "craftcached.sqlite"

_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"
_MAX_VERSION = 1000
"""Beyond it, a number is no version of ours but rot in the file's header; it is written anew."""

_VERSION_AT = 60
"""Place of ``user_version`` in the file, see SQLite's own description of its format."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS queued_warms (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    options TEXT NOT NULL,
    UNIQUE (source, options)
);
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
CREATE TABLE IF NOT EXISTS absences (
    place INTEGER PRIMARY KEY,
    absence TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS models_here (
    source TEXT PRIMARY KEY,
    root TEXT,
    lost_at REAL
);
CREATE TABLE IF NOT EXISTS holds (
    key TEXT NOT NULL,
    uid INTEGER NOT NULL,
    source TEXT NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (key, uid)
);
CREATE TABLE IF NOT EXISTS fetched (
    uid INTEGER PRIMARY KEY,
    day INTEGER NOT NULL,
    bytes INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS hashings (
    path TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL,
    hashed_at REAL NOT NULL,
    is_broken INTEGER NOT NULL
);
"""

LATER_COLUMNS = (
    ("pins", "expires_at", "REAL"),
    ("queued_warms", "uid", "INTEGER"),
    ("models_here", "root", "TEXT"),
    ("models_here", "lost_at", "REAL"),
)
"""Table, name and type of the columns that a database of an earlier release lacks."""

VERSION = 1
"""The version of the tables, SQLite's ``user_version``; 0 is that of release 0.1.0. A later release
raises it only where an earlier one could do harm with what it finds."""


def _columns() -> dict[str, set[str]]:
    """The columns of each table, by the name of the table."""
    with contextlib.closing(sqlite3.connect(":memory:")) as empty:
        empty.executescript(SCHEMA)
        tables = [name for (name,) in empty.execute("SELECT name FROM sqlite_schema")]
        query = "SELECT name FROM pragma_table_info(?)"
        return {
            table: {name for (name,) in empty.execute(query, (table,))}
            for table in tables
            if not table.startswith("sqlite_")
        }


_COLUMNS: Final = _columns()

EARLIER_WARMS = "warm_jobs"
"""Name of the table in which earlier releases keep their queue, with a column for each option."""


def check_version(state_dir: Path) -> None:
    """Refuse a database that a later release wrote; reads only.

    Raises:
        Unavailable: A later release wrote it.
        OSError: It cannot be read.
    """
    path = state_dir / FILENAME
    try:
        header = read_plain(path, _HEADER_BYTES)
    except FileNotFoundError:
        return
    if header.startswith(_MAGIC) and len(header) == _HEADER_BYTES:
        _refuse_newer(path, int.from_bytes(header[_VERSION_AT : _VERSION_AT + 4], "big"))


def _refuse_newer(path: Path, version: int) -> None:
    if VERSION < version <= _MAX_VERSION:
        raise Unavailable(
            f"a newer release wrote {path}: it has version {version}, and this one knows {VERSION};"
            " nothing in it was changed",
            hint="Install that release again, or give this one another state_dir",
            retryable=False,
        )


async def open_database(path: Path) -> aiosqlite.Connection:
    """Open the database, made and brought up to this version where needed.

    Raises:
        Unavailable: A later release wrote it; nothing was changed.
        sqlite3.Error: It is broken, or cannot be written.
        OSError: The file cannot be made.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = await aiosqlite.connect(path)
    try:
        # Once more, and before anything is written: the newest pages may stand in the log yet.
        ((version,),) = await connection.execute_fetchall("PRAGMA user_version")
        _refuse_newer(path, version)
        await connection.executescript(f"PRAGMA journal_mode = WAL; {SCHEMA}")
        await _add_later_columns(connection)
        await _take_over(connection)
        await _check_columns(connection)
        if version != VERSION:
            await connection.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        await connection.close()  # its thread would keep the process from ending
        raise
    return connection


async def _add_later_columns(connection: aiosqlite.Connection) -> None:
    """Add the columns that a database of an earlier release lacks; earlier releases ignore them."""
    for table, column, kind in LATER_COLUMNS:
        rows = await connection.execute_fetchall("SELECT name FROM pragma_table_info(?)", (table,))
        if (column,) not in {tuple(row) for row in rows}:
            await connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
    await connection.commit()


async def _check_columns(connection: aiosqlite.Connection) -> None:
    """Refuse tables that no release made.

    Raises:
        sqlite3.DatabaseError: A table lacks a column.
    """
    for table, expected in _COLUMNS.items():
        rows = await connection.execute_fetchall("SELECT name FROM pragma_table_info(?)", (table,))
        if lacking := expected - {str(name) for (name,) in rows}:
            raise sqlite3.DatabaseError(f"its table {table} lacks {', '.join(sorted(lacking))}")


async def _take_over(connection: aiosqlite.Connection) -> None:
    """Move the queue out of an earlier release's table and drop that table.

    After a downgrade the earlier release makes its table anew, empty.
    """
    table = await connection.execute_fetchall(
        "SELECT name FROM pragma_table_info(?)", (EARLIER_WARMS,)
    )
    if not table:
        return
    connection.row_factory = aiosqlite.Row
    rows = await connection.execute_fetchall(f"SELECT * FROM {EARLIER_WARMS} ORDER BY id")  # noqa: S608  # a constant
    connection.row_factory = None
    earlier = [
        (
            row["id"],
            row["source"],
            dumped(
                WarmOptions(
                    tuple(json.loads(row["filenames"])),
                    resident=bool(row["resident"]),
                    pair_only="pair_only" in row.keys() and bool(row["pair_only"]),  # noqa: SIM118  # a Row holds values
                )
            ),
        )
        for row in rows
    ]
    await connection.executemany(
        "INSERT OR IGNORE INTO queued_warms (id, source, options) VALUES (?, ?, ?)", earlier
    )
    await connection.execute(f"DROP TABLE {EARLIER_WARMS}")
    await connection.commit()


def set_aside(path: Path) -> None:
    """Give a broken database another name, and drop the log that belongs to it."""
    os.replace(path, f"{path}.broken")
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")


def dumped(options: WarmOptions) -> str:
    """Options as JSON for the database, without the flags that have their default.

    So equal options are equal text in a later release too, which has more flags: the UNIQUE
    constraint depends on that.
    """
    default = WarmOptions().to_fields()
    given = {key: value for key, value in options.to_fields().items() if value != default[key]}
    return json.dumps({"filenames": []} | given, sort_keys=True)
