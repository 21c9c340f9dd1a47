"""``GET /v1/openapi.json``: the interface as its own routes and handlers define it.

A route is part of the document by being added to the application: its path and method are the
router's, the body's schema is that of the value that parses it (see ``bodies.takes``), and the
answer's is that of the shape that stands beside the handler (see ``answers``).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import hdrs, web

from craftcache import errors
from craftcache.errors import CraftcacheError, InvalidSource
from craftcache.version import VERSION
from craftcache.wire.fields import MAX_SOURCE
from craftcached.schemas import schema_of, schema_read_by

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from craftcached.schemas import JsonSchema, Shape

    from .bodies import Body


__all__ = ["NDJSON", "PROBLEM", "OpenApiRoute", "answers", "document"]

JSON = "application/json"
NDJSON = "application/x-ndjson"
PROBLEM = "application/problem+json"

HandlerT = TypeVar("HandlerT", bound="Callable[..., Any]")

_PROBLEM_REFERENCE = {"$ref": "#/components/schemas/Problem"}

_PARAMETERS: dict[str, JsonSchema] = {
    # The first character of a Hub id, a URL and a watch alike.
    "/{source}": {"type": "string", "maxLength": MAX_SOURCE, "pattern": "^[A-Za-z0-9_][^\\s]*$"},
    "/watches/{name}": {
        "type": "string",
        "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        "maxLength": 128,
    },
    "/{number}": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
}
"""Schemas of path parameters, by the end of the path up to each; any other is any text."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a handler answers with, as ``answers`` says it.

    Attributes:
        shapes: Shapes of its JSON answers, by status.
        errors: Errors of the tree that it raises, beside CraftcacheError.
        media: Other types of its answers with status 200.
    """

    shapes: Mapping[int, Shape]
    errors: tuple[type[CraftcacheError], ...]
    media: tuple[str, ...] = field(default=())


def answers(
    shape: Shape = None,
    *,
    errors: tuple[type[CraftcacheError], ...] = (),
    media: tuple[str, ...] = (),
    also: Mapping[int, Shape] | None = None,
) -> Callable[[HandlerT], HandlerT]:
    """Say what a handler answers with; stands as the first of its decorators.

    Args:
        shape: Shape of its JSON answer with status 200; None where it has none.
        errors: Errors of the tree that it raises, beside CraftcacheError.
        media: Other types of its answers with status 200.
        also: Shapes of JSON answers with other statuses.
    """
    shapes = ({} if shape is None else {200: shape}) | dict(also or {})

    def decorate(handler: HandlerT) -> HandlerT:
        marked: Any = handler
        marked.answer = _Answer(shapes, errors, media)
        return handler

    return decorate


class OpenApiRoute:
    """Serves the document of the application that it is added to."""

    def __init__(self) -> None:
        self._document: dict[str, Any] | None = None

    def add_to(self, app: web.Application) -> None:
        """Serve it as part of ``app``."""
        app.router.add_get("/v1/openapi.json", self._get)

    @answers(dict[str, Any])
    async def _get(self, request: web.Request) -> web.Response:
        if self._document is None:
            self._document = document(request.app)
        return web.json_response(self._document)


def document(app: web.Application) -> dict[str, Any]:
    """The OpenAPI document of all routes of an application."""
    paths: dict[str, dict[str, Any]] = {}
    known = app.router
    for route in known.routes():
        if route.resource is not None and route.method != hdrs.METH_HEAD:
            operations = paths.setdefault(route.resource.canonical, {})
            operations[route.method.lower()] = _operation(route, route.resource.canonical)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "craftcached",
            "version": VERSION,
            "description": "HTTP on the Unix socket craftcache.sock; see docs/http.md.",
        },
        "servers": [{"url": "http://craftcache"}],
        "paths": paths,
        "components": {"schemas": {"Problem": _problem_schema()}},
    }


def _operation(route: web.AbstractRoute, path: str) -> dict[str, Any]:
    handler: Any = route.handler
    answer: _Answer = getattr(handler, "answer", _Answer({200: object}, ()))
    body = getattr(handler, "body", None)
    names = re.findall(r"{(\w+)}", path)
    failures = {500, *(error.http_status for error in answer.errors)}
    if names or body is not None:
        failures.add(InvalidSource.http_status)
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-z]+', '_', path.lower())}".strip("_"),
        "responses": {
            **{str(status): _success(shape) for status, shape in answer.shapes.items()},
            **{str(status): _failure() for status in sorted(failures)},
            # Unknown paths and methods (404, 405), and bodies that are too long (413).
            "default": _failure(),
        },
    }
    for media in answer.media:
        success = operation["responses"].setdefault("200", {"description": "OK", "content": {}})
        success["content"][media] = {"schema": {}}
    if names:
        operation["parameters"] = [_parameter(name, path) for name in names]
    if body is not None:
        operation["requestBody"] = {
            "required": not body.IS_OPTIONAL,
            "content": {JSON: {"schema": _body_schema(body)}},
        }
    return operation


def _body_schema(body: type[Body]) -> JsonSchema:
    """The schema of a body: of what its ``parse`` reads, or of the class that checks its keys."""
    shape = getattr(body, "SHAPE", None)
    if shape is None:
        return schema_read_by(body.parse)
    schema = schema_of(shape)
    schema["required"] = [key for key in schema["required"] if key != "name"]  # in the path
    return schema


def _parameter(name: str, path: str) -> dict[str, Any]:
    so_far = path.partition(f"{{{name}}}")[0] + f"{{{name}}}"
    known = (schema for ending, schema in _PARAMETERS.items() if so_far.endswith(ending))
    schema = next(known, {"type": "string", "minLength": 1})
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _success(shape: Shape) -> dict[str, Any]:
    return {"description": "OK", "content": {JSON: {"schema": schema_of(shape)}}}


def _failure() -> dict[str, Any]:
    return {
        "description": "A problem document",
        "headers": {"Retry-After": {"schema": {"type": "integer", "minimum": 0}}},
        "content": {PROBLEM: {"schema": _PROBLEM_REFERENCE}},
    }


@functools.cache
def _problem_schema() -> JsonSchema:
    """The schema of a problem document: what reads one, and the codes that there are."""
    schema = schema_read_by(lambda fields: fields.error())
    classes = (getattr(errors, name) for name in errors.__all__)
    schema["properties"]["code"] = {"enum": [each.__name__ for each in classes]}
    return schema
