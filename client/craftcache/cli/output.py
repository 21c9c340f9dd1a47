"""How commands print data: JSON for programs, aligned columns for people."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from craftcache.durations import DAY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Branch",
    "NOT_KNOWN",
    "aligned",
    "moment_text",
    "print_columns",
    "print_json",
    "print_json_line",
    "print_pairs",
    "print_tree",
    "short_revision",
    "span_text",
]

SHORT_REVISION = 12
"""Digits of a commit that people are shown; all of them are in the JSON."""

NOT_KNOWN = "-"
"""What a column holds where there is nothing to say."""

_SPANS = (("day", DAY_SECONDS), ("hour", 3600), ("min", 60))


def print_json(data: object) -> None:
    """``data`` on stdout, value types and dates included."""
    click.echo(json.dumps(data, indent=2, default=_plain))


def print_json_line(data: object) -> None:
    """``data`` as one line of a stream (NDJSON) on stdout, which is told at once."""
    click.echo(json.dumps(data, default=_plain))
    sys.stdout.flush()


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose columns are as wide as they must be, readable by people and by awk."""
    for cells in aligned([header, *rows]):
        click.echo("  ".join(cells).rstrip())


def aligned(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Rows of one length, their cells as wide as their columns must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(width) for cell, width in zip(r, widths, strict=True)] for r in rows]


@dataclass(frozen=True, slots=True)
class Branch:
    """A line of a tree, and those that hang from it."""

    text: str
    branches: Sequence[Branch] = ()


def print_tree(branches: Sequence[Branch], indent: str = "") -> None:
    """What hangs from the line above."""
    for branch in branches:
        is_last = branch is branches[-1]
        click.echo(f"{indent}{'└── ' if is_last else '├── '}{branch.text}".rstrip())
        print_tree(branch.branches, indent + ("    " if is_last else "│   "))


def print_pairs(pairs: Mapping[str, object]) -> None:
    """``name: value`` lines, aligned."""
    width = max(map(len, pairs), default=0) + 1
    for name, value in pairs.items():
        click.echo(f"{name + ':':<{width}} {value}")


def span_text(seconds: float) -> str:
    """A span of time in words, to two units: ``3 days 4 hours``, ``12 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{max(whole, 0)} s"
    words = []
    for name, length in _SPANS:
        count, whole = divmod(whole, length)
        if count:
            words.append(f"{count} {name}{'s' if count > 1 and name != 'min' else ''}")
    return " ".join(words[:2])


def moment_text(moment: float) -> str:
    """A time, given in seconds since the epoch, as this machine's clock shows it."""
    return f"{datetime.fromtimestamp(moment).astimezone():%Y-%m-%d %H:%M}"


def short_revision(revision: str) -> str:
    """Enough of a revision for people."""
    return revision[:SHORT_REVISION]


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
