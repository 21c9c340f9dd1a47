"""What the daemon is at, and what became of what is not warm: parts of its status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from .fields import TEXT_LIMITS, clipped
from .record import JsonRecord, Revision, Source, record_fields, text

__all__ = ["Coming", "NotWarm", "RecentModel", "Disk", "one_line"]

MAX_STATE = 32
MAX_CODE = 64


@dataclass(frozen=True, slots=True)
class Coming(JsonRecord):
    """A source that is being fetched, verified or published.

    Attributes:
        source: The source as shown to people.
        state: State of the work; ``fetching`` while any file of it comes.
        done: Bytes of its files that are there, those of an interrupted download included.
        total: Bytes of its files in all; None where that is not known yet.
        bytes_per_second: Rate at which bytes have come lately; None where none were to come.
        seconds_left: Time until all are there, at that rate; None where that is not known.
        began_at: Time at which the work began, in seconds since the epoch.
    """

    source: Source
    state: Annotated[str, text(MAX_STATE)]
    done: int
    total: int | None
    bytes_per_second: float | None
    seconds_left: float | None
    began_at: float

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The source as a JSON object."""
        return record_fields(self) | {"source": clipped(self.source, text_limit)}


@dataclass(frozen=True, slots=True)
class NotWarm(JsonRecord):
    """A source that somebody wanted, or that was here, and that is not warm; and why.

    Attributes:
        source: The source as shown to people.
        code: The error's class where a warm failed; else ``Evicted``, ``Removed``, ``Cancelled``
            (nobody waited for it any more), ``Damaged`` (files of it are missing), ``Lost`` (all of
            it is gone), or the state of a watch with nothing to serve.
        message: What happened, for people.
        hint: What to do next; empty where there is nothing to do.
        at: When it happened, in seconds since the epoch.
        next_try_at: When the daemon tries again by itself, likewise; None where it does not.
    """

    source: Source
    code: Annotated[str, text(MAX_CODE)]
    message: Annotated[str, text(TEXT_LIMITS[0], empty=True)]
    hint: Annotated[str, text(TEXT_LIMITS[0], empty=True)]
    at: float
    next_try_at: float | None = None

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The source as a JSON object, its texts clipped to ``text_limit``."""
        texts = {"source": self.source, "message": self.message, "hint": self.hint}
        clips = {key: clipped(one_line(text), text_limit) for key, text in texts.items()}
        return record_fields(self) | clips


@dataclass(frozen=True, slots=True)
class RecentModel(JsonRecord):
    """A model that is warm, as one of those that were used last.

    Attributes:
        source: The source as shown to people.
        revision: Revision that a load would serve.
        size: Bytes of its files.
        used_at: Time of its last use or publication, in seconds since the epoch.
        is_pinned: Whether it stays until it is unpinned.
    """

    source: Source
    revision: Revision
    size: int
    used_at: float
    is_pinned: bool

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The model as a JSON object."""
        return record_fields(self) | {"source": clipped(self.source, text_limit)}


@dataclass(frozen=True, slots=True)
class Disk(JsonRecord):
    """The file system of the cache directory.

    Attributes:
        total_bytes: Its size.
        free_bytes: Bytes of it that the daemon may still write.
    """

    total_bytes: int
    free_bytes: int


def one_line(words: str) -> str:
    """Words in one line: they may name a path, which may hold anything."""
    return "".join(char if char.isprintable() else "?" for char in words)
