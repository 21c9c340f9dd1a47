"""Bodies of requests over HTTP: each is a value that one function reads and checks."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, TypeVar

from craftcache.errors import InvalidSource
from craftcache.wire import WarmOptions
from craftcache.wire.fields import Fields
from craftcache.wire.record import JsonRecord

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


def _options(given: Fields, _key: str) -> WarmOptions:
    """The options of warms, which stand beside their sources."""
    return WarmOptions.parse(given.renamed("files", "filenames"), MAX_SOURCES)


def _sources(least: int) -> Callable[[Fields, str], tuple[str, ...]]:
    """Reads sources that are not parsed yet, each of them once."""
    return lambda given, key: tuple(dict.fromkeys(given.strings(key, least, MAX_SOURCES)))


def _filters(given: Fields, key: str) -> tuple[str, ...]:
    return given.strings(key, 1, MAX_FILTERS)


def _generation(given: Fields, key: str) -> int:
    number = given.integer(key)
    if number == 0:
        raise given.refusal(f"{key!r} is no number from 1")
    return number


@dataclass(frozen=True, slots=True)
class WarmBody(JsonRecord):
    """Sources to warm, how, and whether the answer waits for it."""

    sources: Annotated[tuple[str, ...], _sources(1)]
    options: Annotated[WarmOptions, _options]
    wait: bool = True

    EXAMPLE: ClassVar[str] = '{"sources": ["org/name"], "wait": true, "resident": false, "hold": 0}'
    IS_OPTIONAL: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class PlanBody(JsonRecord):
    """Sources whose warms are planned, and how they would be warmed."""

    sources: Annotated[tuple[str, ...], _sources(1)]
    options: Annotated[WarmOptions, _options]

    EXAMPLE: ClassVar[str] = '{"sources": ["org/name"]}'
    IS_OPTIONAL: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class PruneBody(JsonRecord):
    """Filters of models that are removed; they are not parsed yet."""

    filters: Annotated[tuple[str, ...], _filters]
    dry_run: bool = False

    EXAMPLE: ClassVar[str] = '{"filters": ["accessed>30d", "size>1GB"], "dry_run": true}'
    IS_OPTIONAL: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class PinBody(JsonRecord):
    """Whether a pinned model is locked in memory too, and for how many seconds it is pinned."""

    lock: bool = False
    expires_in: float | None = None

    EXAMPLE: ClassVar[str] = '{"lock": true, "expires_in": 2592000}'
    IS_OPTIONAL: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class EvictBody(JsonRecord):
    """Bytes to free; None stands for those beyond ``max_bytes``."""

    bytes: int | None = None
    dry_run: bool = False

    EXAMPLE: ClassVar[str] = '{"bytes": 10000000000, "dry_run": true}'
    IS_OPTIONAL: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class VerifyBody(JsonRecord):
    """Sources whose files are hashed again, none stands for all; whether the answer waits."""

    sources: Annotated[tuple[str, ...], _sources(0)] = ()
    wait: bool = True

    EXAMPLE: ClassVar[str] = '{"sources": ["org/name"], "wait": true}'
    IS_OPTIONAL: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class RollbackBody(JsonRecord):
    """Number of the generation to serve; None stands for the one before."""

    generation: Annotated[int, _generation] | None = None

    EXAMPLE: ClassVar[str] = '{"generation": 3}'
    IS_OPTIONAL: ClassVar[bool] = True


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
