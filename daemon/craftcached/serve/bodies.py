"""What a request over HTTP brings with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from craftcache.errors import InvalidSource
from craftcache.wire.fields import Fields

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["MAX_SOURCES", "body_fields", "source_list"]

MAX_SOURCES = 256
"""Sources of one request."""


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


def source_list(body: Fields, *, is_optional: bool = False) -> list[str]:
    """The sources that a body names, each of them once; they are not parsed yet.

    Raises:
        InvalidSource: It names none, though it must, or something else.
    """
    if is_optional and not body.whole.get("sources"):
        return []
    sources = body.items("sources", MAX_SOURCES)
    if not sources or not all(isinstance(source, str) for source in sources):
        raise body.refusal(f"'sources' is no list of 1 to {MAX_SOURCES} strings")
    return list(dict.fromkeys(sources))
