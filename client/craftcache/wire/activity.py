"""What the daemon is at, and what became of what is not warm: parts of its status."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .fields import MAX_REVISION, MAX_SOURCE, TEXT_LIMITS, clipped

if TYPE_CHECKING:
    from .fields import Fields

__all__ = ["Coming", "NotWarm", "RecentModel", "Disk", "one_line"]

MAX_STATE = 32
MAX_CODE = 64


@dataclass(frozen=True, slots=True)
class Coming:
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

    source: str
    state: str
    done: int
    total: int | None
    bytes_per_second: float | None
    seconds_left: float | None
    began_at: float

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The source as a JSON object."""
        return asdict(self) | {"source": clipped(self.source, text_limit)}

    @classmethod
    def parse(cls, fields: Fields) -> Coming:
        """The source with these keys."""
        return cls(
            source=fields.text("source", MAX_SOURCE),
            state=fields.text("state", MAX_STATE),
            done=fields.integer("done"),
            total=fields.optional_integer("total"),
            bytes_per_second=fields.optional_seconds("bytes_per_second"),
            seconds_left=fields.optional_seconds("seconds_left"),
            began_at=fields.seconds("began_at"),
        )


@dataclass(frozen=True, slots=True)
class NotWarm:
    """A source that somebody wanted, or that was here, and that is not warm; and why.

    Attributes:
        source: The source as shown to people.
        code: The error's class where a warm failed; else ``Evicted``, ``Removed`` or
            ``Cancelled`` (nobody waited for it any more).
        message: What happened, for people.
        hint: What to do next; empty where there is nothing to do.
        at: When it happened, in seconds since the epoch.
        next_try_at: When the daemon tries again by itself, likewise; None where it does not.
    """

    source: str
    code: str
    message: str
    hint: str
    at: float
    next_try_at: float | None = None

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The source as a JSON object, its texts clipped to ``text_limit``."""
        texts = {"source": self.source, "message": self.message, "hint": self.hint}
        clips = {key: clipped(one_line(text), text_limit) for key, text in texts.items()}
        return asdict(self) | clips

    @classmethod
    def parse(cls, fields: Fields) -> NotWarm:
        """The source with these keys."""
        return cls(
            source=fields.text("source", MAX_SOURCE),
            code=fields.text("code", MAX_CODE),
            message=fields.text("message", TEXT_LIMITS[0], empty=True),
            hint=fields.text("hint", TEXT_LIMITS[0], empty=True),
            at=fields.seconds("at"),
            next_try_at=fields.optional_seconds("next_try_at"),
        )


@dataclass(frozen=True, slots=True)
class RecentModel:
    """A model that is warm, as one of those that were used last.

    Attributes:
        source: The source as shown to people.
        revision: Revision that a load would serve.
        size: Bytes of its files.
        used_at: Time of its last use or publication, in seconds since the epoch.
        is_pinned: Whether it stays until it is unpinned.
    """

    source: str
    revision: str
    size: int
    used_at: float
    is_pinned: bool = False

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The model as a JSON object."""
        return asdict(self) | {"source": clipped(self.source, text_limit)}

    @classmethod
    def parse(cls, fields: Fields) -> RecentModel:
        """The model with these keys."""
        return cls(
            source=fields.text("source", MAX_SOURCE),
            revision=fields.text("revision", MAX_REVISION),
            size=fields.integer("size"),
            used_at=fields.seconds("used_at"),
            is_pinned=fields.flag("is_pinned"),
        )


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of the cache directory.

    Attributes:
        total_bytes: Its size.
        free_bytes: Bytes of it that the daemon may still write.
    """

    total_bytes: int
    free_bytes: int

    def to_fields(self) -> dict[str, Any]:
        """The file system as a JSON object."""
        return asdict(self)

    @classmethod
    def parse(cls, fields: Fields) -> Disk:
        """The file system with these keys."""
        return cls(fields.integer("total_bytes"), fields.integer("free_bytes"))


def one_line(words: str) -> str:
    """Words in one line: they may name a path, which may hold anything."""
    return "".join(char if char.isprintable() else "?" for char in words)
