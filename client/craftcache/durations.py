"""Lengths of time as people write them: ``90s``, ``12h``, ``30d``."""

from __future__ import annotations

import re

from .errors import InvalidSource

__all__ = ["DAY_SECONDS", "parse_span"]

DAY_SECONDS = 86_400

_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhdw])", re.ASCII)
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": DAY_SECONDS, "w": 7 * DAY_SECONDS}


def parse_span(text: str) -> float:
    """Seconds, given with a unit, like 90s, 12h or 30d.

    Raises:
        InvalidSource: It is none.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise InvalidSource(f"{text[:80]!r} is no span of time", hint="Write one like 12h or 30d")
    return float(found[1]) * _SPANS[found[2]]
