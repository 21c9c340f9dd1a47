"""A database that refuses some of its changes, as on a failing disk."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from craftcached.database.schema import FILENAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["refusing"]


@contextlib.contextmanager
def refusing(state_dir: Path, change: str) -> Iterator[None]:
    """A context in which the daemon's database refuses a change, like ``INSERT ON pins``."""
    with contextlib.closing(sqlite3.connect(state_dir / FILENAME)) as connection:
        connection.execute(
            f"CREATE TRIGGER refused BEFORE {change} BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
        yield
        connection.execute("DROP TRIGGER refused")
