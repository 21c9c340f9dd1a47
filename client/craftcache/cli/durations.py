"""Lengths of time on the command line: ``90s``, ``4h``, ``30d``."""

from __future__ import annotations

import re

import click

__all__ = ["as_seconds", "duration_seconds"]

_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", re.ASCII)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def duration_seconds(text: str) -> float:
    """Seconds of a length of time.

    Raises:
        ValueError: It is none.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no length of time, like 90s, 4h or 30d")
    return float(found[1]) * _UNITS[found[2]]


def as_seconds(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> float | None:
    """Seconds of an option's length of time; None where it is not given. A click callback."""
    try:
        return None if text is None else duration_seconds(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
