"""The first message of each side, whose form never changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from craftcache.version import VERSION

from .fields import WireError

if TYPE_CHECKING:
    from .fields import Fields

__all__ = ["VERSIONS", "Versions", "Hello"]

MAX_VERSION = 65_535
MAX_SOFTWARE = 128


@dataclass(frozen=True, slots=True)
class Versions:
    """A range of protocol versions, both ends included."""

    low: int
    high: int

    def common(self, other: Versions) -> int | None:
        """The highest version in both ranges, or None."""
        version = min(self.high, other.high)
        return version if version >= max(self.low, other.low) else None


VERSIONS = Versions(1, 1)
"""What this release speaks."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of each side.

    Attributes:
        versions: The protocol versions that the side speaks.
        software: Name and version of the software, for people and logs; decides nothing.
    """

    versions: Versions = VERSIONS
    software: str = f"craftcache {VERSION}"

    TYPE: ClassVar[str] = "hello"

    def to_fields(self) -> dict[str, Any]:
        """The message's keys, but for its type."""
        return {"versions": [self.versions.low, self.versions.high], "software": self.software}

    @classmethod
    def parse(cls, fields: Fields) -> Hello:
        """The message with these keys."""
        ends = fields.items("versions", 2)
        if [type(end) for end in ends] == [int, int] and 0 <= ends[0] <= ends[1] <= MAX_VERSION:
            return cls(Versions(*ends), fields.text("software", MAX_SOFTWARE))
        raise WireError("'versions' is no range of versions")
