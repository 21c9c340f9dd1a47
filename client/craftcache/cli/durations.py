"""Lengths of time on the command line: ``90s``, ``4h``, ``30d``; a bare number is of seconds."""

from __future__ import annotations

import click

from craftcache.durations import parse_span
from craftcache.errors import InvalidSource

__all__ = ["as_seconds"]


def as_seconds(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> float | None:
    """Seconds of an option's length of time; None where it is not given. A click callback."""
    if text is None:
        return None
    text = text.strip()
    try:
        return parse_span(text if text[-1:].isalpha() else f"{text}s")
    except InvalidSource as error:
        raise click.BadParameter(f"{error.message}; {error.hint}") from error
