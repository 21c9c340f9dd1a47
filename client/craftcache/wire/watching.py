"""What the daemon answers about watched export directories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from craftcache.sources import PARTS, Part

from .fields import MAX_PATH, MAX_WATCH_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .fields import Fields

__all__ = ["Identified", "Generation"]


@dataclass(frozen=True, slots=True)
class Identified:
    """Which watch a directory belongs to.

    Attributes:
        watch: Name of the watch; empty where the directory is not watched.
    """

    watch: str

    TYPE: ClassVar[str] = "identified"

    def to_fields(self) -> dict[str, Any]:
        """The message's keys, but for its type."""
        return {"watch": self.watch}

    @classmethod
    def parse(cls, fields: Fields) -> Identified:
        """The message with these keys."""
        return cls(fields.text("watch", MAX_WATCH_NAME, empty=True))


@dataclass(frozen=True, slots=True)
class Generation:
    """A verified state of a watched export directory, which is served now.

    Attributes:
        name: Name of the watch; ``load(f"watch:{name}")`` gets this generation, or a newer one.
        number: Number of the generation; ``load(f"watch:{name}@{number}")`` gets this one only.
        sha256: Digest of each part's file, in hex.
        path: The watched directory, as the daemon sees it.
    """

    name: str
    number: int
    sha256: Mapping[Part, str]
    path: Path

    TYPE: ClassVar[str] = "generation"

    def to_fields(self) -> dict[str, Any]:
        """The message's keys, but for its type."""
        return {
            "name": self.name,
            "number": self.number,
            "sha256": dict(self.sha256),
            "path": str(self.path),
        }

    @classmethod
    def parse(cls, fields: Fields) -> Generation:
        """The message with these keys."""
        digests = fields.child("sha256")
        return cls(
            name=fields.text("name", MAX_WATCH_NAME),
            number=fields.integer("number"),
            sha256={part: digests.sha256(part) for part in PARTS},
            path=Path(fields.text("path", MAX_PATH)),
        )
