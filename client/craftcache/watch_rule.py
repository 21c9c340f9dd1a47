"""What an administrator asks of a watch: which directory, and when its state is a generation."""

from __future__ import annotations

import math
import os
import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from .errors import InvalidSource
from .sources import check_filename, check_watch_name

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["WatchRule", "default_watch_name"]

MAX_SETTLE_SECONDS = 24 * 3600.0
MIN_SETTLE_SECONDS = 0.05
"""Longer than the ticks of a file's mtime, so that two states of it have different ones."""

MAX_KEEP = 1000

_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRule:
    """One watch, or one for each directory that a pattern stands for.

    Attributes:
        name: Name of the watch; for a pattern, the prefix of the names of all its watches.
        directory: Absolute path of an export directory, or a pattern with ``*``, ``?`` or ``[]``.
        settle: Seconds that both files must be quiet.
        marker: A file in the directory that must be there and no older than the pair.
        gate: A command that is given a candidate's directory; only its exit status 0 publishes.
        keep: Number of generations that stay beside the newest.
        poll: Look at the directory in intervals, whatever file system it is on.
    """

    name: str
    directory: str
    settle: float = 10.0
    marker: str | None = None
    gate: str | None = None
    keep: int = 2
    poll: bool = False

    def __post_init__(self) -> None:
        check_watch_name(self.name)
        source = f"watch:{self.name}"
        if not os.path.isabs(self.directory) or not self.directory.isprintable():
            raise InvalidSource(
                f"{self.directory!r} is no absolute path of a directory",
                source=source,
                hint="Name the export directory from the root on",
            )
        if not MIN_SETTLE_SECONDS <= self.settle <= MAX_SETTLE_SECONDS:
            raise InvalidSource(
                f"settle is {self.settle:g} s, not between {MIN_SETTLE_SECONDS:g} s and a day",
                source=source,
                hint="Make it longer than the writer's longest pause",
            )
        if not 0 <= self.keep <= MAX_KEEP:
            raise InvalidSource(
                f"keep is {self.keep}, not between 0 and {MAX_KEEP}",
                source=source,
                hint="Generations that are in use stay in any case",
            )
        if self.marker is not None and "/" in check_filename(self.marker, source=source):
            raise InvalidSource(
                "the marker is no name of a file in the directory",
                source=source,
                hint="Name a file that the writer makes last, such as DONE",
            )

    @property
    def is_pattern(self) -> bool:
        """Whether the directory stands for any number of directories."""
        return any(character in self.directory for character in "*?[")

    def to_fields(self) -> dict[str, Any]:
        """The rule as a JSON object."""
        return asdict(self)

    @classmethod
    def parse(cls, raw: Mapping[str, object]) -> WatchRule:
        """The rule that a table or a JSON object says; all but ``directory`` may be left out.

        Raises:
            InvalidSource: A key is unknown, or a value ill-typed or out of bounds.
        """
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(raw) - known):
            raise InvalidSource(
                f"unknown key {unknown[0]!r} of a watch", hint=f"The keys are {sorted(known)}"
            )
        return cls.of(raw)

    @classmethod
    def of(cls, raw: Mapping[str, object]) -> WatchRule:
        """The rule among these keys; those of no rule are ignored."""
        directory = os.path.normpath(_text(raw, "directory") or "")
        name = _text(raw, "name") or default_watch_name(directory)
        given = {key: value for key, value in raw.items() if value is not None}
        return cls(
            name=name,
            directory=directory,
            settle=_number(given, "settle", 10.0),
            marker=_text(raw, "marker"),
            gate=_text(raw, "gate"),
            keep=_count(given, "keep", 2),
            poll=_flag(given, "poll"),
        )


def default_watch_name(directory: str) -> str:
    """The name of a watch that was given none: its run's, where the directory is called export."""
    parts = [part for part in directory.split("/") if part and not set(part) & set("*?[")]
    while len(parts) > 1 and parts[-1] in ("export", "exports"):
        parts.pop()
    return _UNNAMEABLE.sub("_", parts[-1] if parts else "").strip(".-")[:100] or "watch"


def _text(raw: Mapping[str, object], key: str) -> str | None:
    value = raw.get(key)
    if value is None or (isinstance(value, str) and value and value.isprintable()):
        return value
    raise InvalidSource(f"{key} of a watch is no line of text", hint="Correct it")


def _number(raw: Mapping[str, object], key: str, default: float) -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidSource(f"{key} of a watch is no number", hint="Give seconds")
    return float(value)


def _count(raw: Mapping[str, object], key: str, default: int) -> int:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidSource(f"{key} of a watch is no whole number", hint="Correct it")
    return value


def _flag(raw: Mapping[str, object], key: str) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise InvalidSource(f"{key} of a watch is neither true nor false", hint="Correct it")
    return value
