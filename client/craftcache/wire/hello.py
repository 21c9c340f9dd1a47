"""The first message of each side, whose form never changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from craftcache.version import VERSION

from .fields import WireError
from .record import JsonRecord, text

if TYPE_CHECKING:
    from .fields import Fields

__all__ = ["VERSIONS", "Versions", "Hello", "FallbackReason", "ReportedFallback"]

MAX_VERSION = 65_535
MAX_SOFTWARE = 128
MAX_FALLBACKS = 32
MAX_WORD = 32

FallbackReason: TypeAlias = Literal[
    "absent", "silent", "gone", "busy", "protocol", "failed", "denied"
]
"""Why a daemon did not serve a load: nobody listens; no word in time; it went away in the middle;
it was at its limits for too long; no common protocol, or nonsense; by its own fault; its token may
not read what the worker's may."""


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
class ReportedFallback(JsonRecord):
    """Loads without the daemon, as a worker tells the daemon that is there again.

    Attributes:
        reason: Why the daemon did not serve them; a FallbackReason, or one of a later release.
        served_by: Who did: ``cache``, ``origin``, or ``nobody``.
        count: How many.
    """

    reason: Annotated[str, text(MAX_WORD)]
    served_by: Annotated[str, text(MAX_WORD)]
    count: int


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of each side.

    Attributes:
        versions: The protocol versions that the side speaks.
        software: Name and version of the software, for people and logs; decides nothing.
        fallbacks: A client's loads without the daemon since it last told of them.
    """

    versions: Versions = VERSIONS
    software: str = f"craftcache {VERSION}"
    fallbacks: tuple[ReportedFallback, ...] = ()

    TYPE: ClassVar[str] = "hello"

    def to_fields(self) -> dict[str, Any]:
        """The message's keys, but for its type."""
        fields: dict[str, Any] = {
            "versions": [self.versions.low, self.versions.high],
            "software": self.software,
        }
        if self.fallbacks:
            fields["fallbacks"] = [each.to_fields() for each in self.fallbacks[:MAX_FALLBACKS]]
        return fields

    @classmethod
    def parse(cls, fields: Fields) -> Hello:
        """The message with these keys."""
        ends = fields.items("versions", 2)
        if [type(end) for end in ends] == [int, int] and 0 <= ends[0] <= ends[1] <= MAX_VERSION:
            software = fields.text("software", MAX_SOFTWARE)
            return cls(Versions(*ends), software, _fallbacks(fields))
        raise WireError("'versions' is no range of versions")


def _fallbacks(fields: Fields) -> tuple[ReportedFallback, ...]:
    if fields.is_null("fallbacks"):
        return ()
    return tuple(map(ReportedFallback.parse, fields.children("fallbacks", MAX_FALLBACKS)))
