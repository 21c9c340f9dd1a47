"""Bodies of requests over HTTP: each is a value that one function reads and checks."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from craftcache.errors import InvalidSource
from craftcache.wire import WarmOptions
from craftcache.wire.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Self

    from aiohttp import web

__all__ = [
    "Body",
    "EvictBody",
    "PinBody",
    "PlanBody",
    "PruneBody",
    "RollbackBody",
    "VerifyBody",
    "WarmBody",
    "body_fields",
    "moment_text",
    "takes",
]

MAX_SOURCES = 256
"""Sources of one request."""

MAX_FILTERS = 64
"""Filters of one pruning."""

HandlerT = TypeVar("HandlerT")
AnswerT = TypeVar("AnswerT", covariant=True)
BodyT = TypeVar("BodyT", bound="Body")


class Body(Protocol):
    """The JSON object in a request's body, as a value."""

    EXAMPLE: ClassVar[str]
    """A right body, shown to a client whose body is not."""

    IS_OPTIONAL: ClassVar[bool]
    """Whether there may be no body, which stands for an empty object."""

    @classmethod
    def parse(cls, fields: Fields, /) -> Self:
        """The body with these keys; unknown ones are ignored."""
        ...


@dataclass(frozen=True, slots=True)
class WarmBody:
    """Sources to warm, how, and whether the answer waits for it."""

    sources: tuple[str, ...]
    options: WarmOptions
    wait: bool

    EXAMPLE: ClassVar[str] = '{"sources": ["org/name"], "wait": true, "resident": false, "hold": 0}'
    IS_OPTIONAL: ClassVar[bool] = False

    @classmethod
    def parse(cls, fields: Fields, /) -> WarmBody:
        """See Body.parse; the sources are not parsed yet, each of them once."""
        options = WarmOptions.parse(fields.renamed("files", "filenames"), MAX_SOURCES)
        sources = tuple(dict.fromkeys(fields.strings("sources", 1, MAX_SOURCES)))
        return cls(sources, options, fields.optional_flag("wait", default=True))


@dataclass(frozen=True, slots=True)
class PlanBody:
    """Sources whose warms are planned, and how they would be warmed."""

    sources: tuple[str, ...]
    options: WarmOptions

    EXAMPLE: ClassVar[str] = '{"sources": ["org/name"]}'
    IS_OPTIONAL: ClassVar[bool] = False

    @classmethod
    def parse(cls, fields: Fields, /) -> PlanBody:
        """See Body.parse; the sources are not parsed yet, each of them once."""
        options = WarmOptions.parse(fields.renamed("files", "filenames"), MAX_SOURCES)
        return cls(tuple(dict.fromkeys(fields.strings("sources", 1, MAX_SOURCES))), options)


@dataclass(frozen=True, slots=True)
class PruneBody:
    """Filters of models that are removed; they are not parsed yet."""

    filters: tuple[str, ...]
    dry_run: bool

    EXAMPLE: ClassVar[str] = '{"filters": ["accessed>30d", "size>1GB"], "dry_run": true}'
    IS_OPTIONAL: ClassVar[bool] = False

    @classmethod
    def parse(cls, fields: Fields, /) -> PruneBody:
        """See Body.parse."""
        dry_run = fields.optional_flag("dry_run")
        return cls(fields.strings("filters", 1, MAX_FILTERS), dry_run)


@dataclass(frozen=True, slots=True)
class PinBody:
    """Whether a pinned model is locked in memory too, and for how many seconds it is pinned."""

    lock: bool
    expires_in: float | None

    EXAMPLE: ClassVar[str] = '{"lock": true, "expires_in": 2592000}'
    IS_OPTIONAL: ClassVar[bool] = True

    @classmethod
    def parse(cls, fields: Fields, /) -> PinBody:
        """See Body.parse."""
        return cls(fields.optional_flag("lock"), fields.optional_seconds("expires_in"))


@dataclass(frozen=True, slots=True)
class EvictBody:
    """Bytes to free; None stands for those beyond ``max_bytes``."""

    bytes: int | None
    dry_run: bool

    EXAMPLE: ClassVar[str] = '{"bytes": 10000000000, "dry_run": true}'
    IS_OPTIONAL: ClassVar[bool] = True

    @classmethod
    def parse(cls, fields: Fields, /) -> EvictBody:
        """See Body.parse."""
        dry_run = fields.optional_flag("dry_run")
        return cls(fields.optional_integer("bytes"), dry_run)


@dataclass(frozen=True, slots=True)
class VerifyBody:
    """Sources whose files are hashed again, none stands for all; whether the answer waits."""

    sources: tuple[str, ...]
    wait: bool

    EXAMPLE: ClassVar[str] = '{"sources": ["org/name"], "wait": true}'
    IS_OPTIONAL: ClassVar[bool] = True

    @classmethod
    def parse(cls, fields: Fields, /) -> VerifyBody:
        """See Body.parse."""
        wait = fields.optional_flag("wait", default=True)
        if fields.is_null("sources"):
            return cls((), wait)
        return cls(tuple(dict.fromkeys(fields.strings("sources", 0, MAX_SOURCES))), wait)


@dataclass(frozen=True, slots=True)
class RollbackBody:
    """Number of the generation to serve; None stands for the one before."""

    generation: int | None

    EXAMPLE: ClassVar[str] = '{"generation": 3}'
    IS_OPTIONAL: ClassVar[bool] = True

    @classmethod
    def parse(cls, fields: Fields, /) -> RollbackBody:
        """See Body.parse."""
        number = fields.optional_integer("generation")
        if number == 0:
            raise fields.refusal("'generation' is no number from 1")
        return cls(number)


def takes(
    body: type[BodyT],
) -> Callable[
    [Callable[[HandlerT, web.Request, BodyT], Awaitable[AnswerT]]],
    Callable[[HandlerT, web.Request], Awaitable[AnswerT]],
]:
    """Give a handler the body of its request, parsed; one that is wrong is an InvalidSource."""

    def decorate(
        handler: Callable[[HandlerT, web.Request, BodyT], Awaitable[AnswerT]],
    ) -> Callable[[HandlerT, web.Request], Awaitable[AnswerT]]:
        @functools.wraps(handler)
        async def handle(self: HandlerT, request: web.Request) -> AnswerT:
            return await handler(self, request, await _read(request, body))

        kept: Any = handle
        kept.body = body  # for the description of the interface
        return handle

    return decorate


async def _read(request: web.Request, body: type[BodyT]) -> BodyT:
    return body.parse(await body_fields(request, body.EXAMPLE, is_optional=body.IS_OPTIONAL))


def moment_text(moment: float | None) -> str | None:
    """A time in seconds since the epoch as RFC 3339 writes it, in UTC; None for none."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


async def body_fields(request: web.Request, example: str, *, is_optional: bool = False) -> Fields:
    """The JSON object in a request's body; what is wrong with it is an InvalidSource.

    Args:
        request: The request.
        example: A right body, for the hint.
        is_optional: Whether there may be no body, which stands for an empty object.

    Raises:
        InvalidSource: There is none.
    """

    def refuse(why: str) -> InvalidSource:
        return InvalidSource(f"the body is wrong: {why}", hint=f"Send {example}")

    if is_optional and not request.can_read_body:
        return Fields({}, refuse)
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        body = None
    return Fields(body, refuse)
