"""What can be wrong with an answer, as data.

A :class:`Delivery` describes one answer in full; a :class:`Fault` turns it into a worse one.
The hub itself knows no fault: it only carries out deliveries. So faults combine freely.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from .content import Content, Data, FlippedBit, Prefix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .gates import Gate, Valve

__all__ = [
    "Delivery",
    "Cut",
    "Fault",
    "Status",
    "RateLimited",
    "ExpiredSignature",
    "Redirect",
    "ResetConnection",
    "CloseEarly",
    "Stall",
    "Drip",
    "NoLength",
    "NoRanges",
    "WrongContentRange",
    "WrongStart",
    "FlipBit",
    "Truncate",
    "OtherEtag",
    "WithHeaders",
]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where and how an answer breaks off.

    Attributes:
        after: Bytes of the body that still arrive, or None to send not even a head.
        reset: By RST rather than by an orderly close.
    """

    after: int | None
    reset: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """One answer.

    Attributes:
        content: The whole file, of which the request may want a part.
        status: Sent whatever the request's conditions and ranges say; None heeds them.
        headers: Beside those that follow from the other attributes.
        etag: Unquoted.
        ranges: Whether ranges are offered and served.
        length: Whether the body's length is declared, or the body is chunked, or just ends.
        content_range_shift: Added to what Content-Range says.
        body_shift: Added to where the body starts.
        cut: Where the answer breaks off.
        stalls: Gates with the byte of the body that stands behind each, or None for the head.
        valve: Lets the body through.
    """

    content: Content
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str | None = None
    ranges: bool = True
    length: Literal["declared", "chunked", "until-close"] = "declared"
    content_range_shift: int = 0
    body_shift: int = 0
    cut: Cut | None = None
    stalls: tuple[tuple[int | None, Gate], ...] = ()
    valve: Valve | None = None


class Fault(ABC):
    """Something wrong with an answer."""

    __slots__ = ()

    @abstractmethod
    def spoil(self, delivery: Delivery) -> Delivery:
        """The delivery with this fault in it."""


@dataclass(frozen=True, slots=True)
class Status(Fault):
    """Another status instead of the file."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"fault"

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(
            delivery,
            content=Data(self.body),
            status=self.code,
            headers=self.headers,
            etag=None,
        )


def RateLimited(reset_s: int = 0) -> Status:  # noqa: N802 - reads as the faults beside it
    """429 with the Hub's RateLimit header and Retry-After."""
    headers = {
        "Retry-After": str(reset_s),
        "RateLimit": f'"resolvers";r=0;t={reset_s}',
        "RateLimit-Policy": '"fixed window";"resolvers";q=5000;w=300',
    }
    return Status(429, headers)


def ExpiredSignature() -> Status:  # noqa: N802 - reads as the faults beside it
    """What a CDN answers to a signed URL after its time."""
    return Status(
        403,
        {"Content-Type": "application/xml"},
        b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
    )


@dataclass(frozen=True, slots=True)
class Redirect(Fault):
    """To ``location``; one that names the request's own path (always) is a loop."""

    location: str
    code: int = 302

    def spoil(self, delivery: Delivery) -> Delivery:
        return Status(self.code, {"Location": self.location}, b"").spoil(delivery)


@dataclass(frozen=True, slots=True)
class ResetConnection(Fault):
    """RST once ``after`` bytes of the body have arrived; None: instead of any answer."""

    after: int | None = None

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(delivery, cut=Cut(self.after, reset=True))


@dataclass(frozen=True, slots=True)
class CloseEarly(Fault):
    """An orderly close after ``after`` bytes of the body; None: instead of any answer."""

    after: int | None = None

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(delivery, cut=Cut(self.after, reset=False))


@dataclass(frozen=True, slots=True)
class Stall(Fault):
    """Silence after ``after`` bytes of the body (None: before the head) until ``gate`` opens."""

    gate: Gate
    after: int | None = None

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(delivery, stalls=(*delivery.stalls, (self.after, self.gate)))


@dataclass(frozen=True, slots=True)
class Drip(Fault):
    """A body that comes as ``valve`` lets it."""

    valve: Valve

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(delivery, valve=self.valve)


@dataclass(frozen=True, slots=True)
class NoLength(Fault):
    """No Content-Length: chunked, or a body that just ends when the connection closes.

    With ``chunked=False`` and CloseEarly nothing in the answer tells that bytes are missing.
    """

    chunked: bool = True

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(delivery, length="chunked" if self.chunked else "until-close")


@dataclass(frozen=True, slots=True)
class NoRanges(Fault):
    """Always the whole file, with 200, whatever range was asked for."""

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(delivery, ranges=False)


@dataclass(frozen=True, slots=True)
class WrongContentRange(Fault):
    """The right bytes under a Content-Range that lies by ``shift`` bytes."""

    shift: int = 1

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(delivery, content_range_shift=self.shift)


@dataclass(frozen=True, slots=True)
class WrongStart(Fault):
    """The right head over as many bytes from elsewhere, ``shift`` bytes before (or after)."""

    shift: int = -1

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(delivery, body_shift=self.shift)


@dataclass(frozen=True, slots=True)
class FlipBit(Fault):
    """One wrong bit in the byte at ``offset`` of the file; all else is right."""

    offset: int

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(delivery, content=FlippedBit(delivery.content, self.offset))


@dataclass(frozen=True, slots=True)
class Truncate(Fault):
    """A file that is only ``size`` bytes long, in its head as in its body."""

    size: int

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(delivery, content=Prefix(delivery.content, self.size))


@dataclass(frozen=True, slots=True)
class OtherEtag(Fault):
    """An ETag (unquoted) that is not the one of before; None leaves it out."""

    etag: str | None = "changed"

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(delivery, etag=self.etag)


@dataclass(frozen=True, slots=True)
class WithHeaders(Fault):
    """Headers added to the right answer, or put in the place of its own."""

    headers: Mapping[str, str]

    def spoil(self, delivery: Delivery) -> Delivery:
        return replace(delivery, headers={**delivery.headers, **self.headers})
