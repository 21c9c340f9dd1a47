"""What a request over HTTP brings with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from craftcache.errors import InvalidSource

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["json_body"]


async def json_body(request: web.Request, example: str) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        InvalidSource: There is none; the hint shows the ``example``.
    """
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise InvalidSource("the body is not a JSON object", hint=f"Send {example}")
    return body
