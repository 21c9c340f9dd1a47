"""JSON schemas of what stands on the wire, from the definitions that read and write it.

There is no second description: the schema of a value that is parsed is found by having it parse an
object that notes what is asked of it, key by key, with the bounds; that of a value that is written
as it stands comes from its annotations.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from craftcache.wire.fields import MAX_INTEGER, Fields

if typing.TYPE_CHECKING:
    from craftcache.errors import CraftcacheError

__all__ = ["JsonSchema", "Shape", "inside", "schema_of", "schema_read_by"]

JsonSchema: TypeAlias = dict[str, Any]

Shape: TypeAlias = Any
"""A type whose annotations say what is written, unless its ``parse`` reads it from Fields; a
function that reads it; a list of one shape, or a dict of shapes by key; or a tuple of shapes whose
keys stand in one object."""

T = TypeVar("T")

_SIMPLE: dict[object, JsonSchema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    datetime: {"type": "string", "format": "date-time"},
    Path: {"type": "string"},
    type(None): {"type": "null"},
    Any: {},
    object: {},
}

_RUNTIME = {"Mapping": Mapping, "Sequence": Sequence, "datetime": datetime, "Path": Path}
"""Names that modules import for type checkers alone, for annotations that use them."""

SAMPLE_TEXT = "x"
"""What a parser is given for any text, while what it asks for is noted."""


def schema_of(shape: Shape) -> JsonSchema:
    """The schema of a shape."""
    if isinstance(shape, tuple):
        return _together(list(map(schema_of, shape)))
    if isinstance(shape, list):
        return {"type": "array", "items": schema_of(shape[0])}
    if isinstance(shape, dict):
        properties = {key: schema_of(each) for key, each in shape.items()}
        return {"type": "object", "properties": properties, "required": list(shape)}
    if shape in _SIMPLE:
        return dict(_SIMPLE[shape])
    origin: Any = typing.get_origin(shape)
    arguments = typing.get_args(shape)
    if origin in (typing.Union, types.UnionType):
        return _any_of(list(map(schema_of, arguments)))
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": schema_of(arguments[1])}
    if origin is not None and issubclass(origin, Sequence):
        return {"type": "array", "items": schema_of(arguments[0])}
    if _reads_fields(getattr(shape, "parse", None)):
        return schema_read_by(shape.parse)
    if is_dataclass(shape) or typing.is_typeddict(shape):
        return _schema_of_keys(shape)
    if callable(shape):
        return schema_read_by(shape)
    raise TypeError(f"{shape!r} has no schema")


def schema_read_by(read: Callable[[Fields], object]) -> JsonSchema:
    """The schema of the objects that a function can read."""
    noted = _Noted()
    read(noted)
    return noted.schema()


def inside(key: str, read: Callable[[Fields], object]) -> Callable[[Fields], object]:
    """``read``, for an object that holds at its top what ``read`` looks for below ``key``."""

    def read_inside(given: Fields) -> object:
        assert isinstance(given, _Noted)  # noqa: S101  # only schemas are made of it
        given.flattened = key
        return read(given)

    return read_inside


def _reads_fields(read: Any) -> bool:  # noqa: ANN401  # whatever a class calls parse
    return read is not None and "Fields" in list(read.__annotations__.values())[:1]


def _schema_of_keys(shape: Any) -> JsonSchema:  # noqa: ANN401  # a dataclass or a TypedDict
    """The schema of an object with the keys that a class annotates."""
    hints = typing.get_type_hints(shape, localns=_RUNTIME)
    if is_dataclass(shape):
        names = [item.name for item in fields(shape)]
        required = [
            item.name
            for item in fields(shape)
            if item.default is MISSING and item.default_factory is MISSING
        ]
    else:
        names = list(hints)
        required = sorted(shape.__required_keys__, key=names.index)
    properties = {name: schema_of(hints[name]) for name in names}
    return {"type": "object", "properties": properties, "required": required}


def _together(schemas: Sequence[JsonSchema]) -> JsonSchema:
    """The schema of one object with the keys of all; of equal keys the last counts."""
    properties: JsonSchema = {}
    required: dict[str, None] = {}
    for schema in schemas:
        properties |= schema["properties"]
        required |= dict.fromkeys(schema.get("required", ()))
    return {"type": "object", "properties": properties, "required": list(required)}


def _any_of(schemas: list[JsonSchema]) -> JsonSchema:
    return {"anyOf": schemas}


class _Noted(Fields):
    """An object that has every key that is asked for, and notes what is asked.

    Attributes:
        flattened: A key below which the same object is found again, see inside.
    """

    __slots__ = ("_optional", "_properties", "_renamed", "flattened")

    def __init__(self) -> None:
        super().__init__(_Everything())
        self.flattened: str | None = None
        self._properties: dict[str, JsonSchema | Callable[[], JsonSchema]] = {}
        self._optional: dict[str, object] = {}
        self._renamed: dict[str, str] = {}

    def schema(self) -> JsonSchema:
        properties: JsonSchema = {}
        for key, noted in self._properties.items():
            schema = noted() if callable(noted) else noted
            is_optional = key in self._optional
            properties[key] = _any_of([schema, {"type": "null"}]) if is_optional else schema
            if self._optional.get(key) is not None:
                properties[key]["default"] = self._optional[key]
        others = properties.pop(_ANY_KEY, None)
        required = [key for key in properties if key not in self._optional]
        whole = {"type": "object", "properties": properties, "required": required}
        return whole if others is None else whole | {"additionalProperties": others}

    def _note(self, key: str, schema: JsonSchema | Callable[[], JsonSchema], sample: T) -> T:
        self._properties[self._renamed.get(key, key)] = schema
        return sample

    def is_null(self, key: str) -> bool:
        self._optional.setdefault(self._renamed.get(key, key), None)
        return False

    def optional_flag(self, key: str, *, default: bool = False) -> bool:
        self._optional[self._renamed.get(key, key)] = default
        return self.flag(key)

    def text(self, key: str, limit: int, *, empty: bool = False) -> str:
        return self._note(key, _text(limit, empty=empty), SAMPLE_TEXT)

    def texts(self, key: str, count: int, limit: int, *, empty: bool = True) -> tuple[str, ...]:
        least = {} if empty else {"minItems": 1}
        items = {"type": "array", "items": _text(limit), "maxItems": count} | least
        return self._note(key, items, (SAMPLE_TEXT,))

    def strings(self, key: str, least: int, most: int) -> tuple[str, ...]:
        items = {"type": "array", "items": {"type": "string"}, "minItems": least, "maxItems": most}
        return self._note(key, items, (SAMPLE_TEXT,))

    def choice(self, key: str, options: Mapping[str, T]) -> T:
        return self._note(key, {"enum": list(options)}, next(iter(options.values())))

    def sha256(self, key: str) -> str:
        return self._note(key, {"type": "string", "pattern": "^[0-9a-f]{64}$"}, "0" * 64)

    def commit(self, key: str) -> str:
        return self._note(key, {"type": "string", "pattern": "^[0-9a-f]{40}$"}, "0" * 40)

    def hub_etag(self, key: str) -> str:
        pattern = "^([0-9a-f]{40}|[0-9a-f]{64})$"
        return self._note(key, {"type": "string", "pattern": pattern}, "0" * 64)

    def integer(self, key: str) -> int:
        return self._note(key, dict(_COUNT), 1)

    def integers(self, key: str, count: int) -> tuple[int, ...]:
        items = {"type": "array", "items": dict(_COUNT), "maxItems": count}
        return self._note(key, items, (1,))

    def seconds(self, key: str) -> float:
        return self._note(key, {"type": "number", "minimum": 0}, 1.0)

    def moment(self, key: str) -> datetime:
        return self._note(key, dict(_SIMPLE[datetime]), datetime.fromtimestamp(0, UTC))

    def flag(self, key: str) -> bool:
        return self._note(key, {"type": "boolean"}, True)

    def items(self, key: str, limit: int) -> list[Any]:
        return self._note(key, {"type": "array", "maxItems": limit}, [])

    def child(self, key: str) -> Fields:
        if key == self.flattened:
            return self
        child = _Noted()
        return self._note(key, child.schema, child)

    def children(self, key: str, limit: int) -> Iterator[Fields]:
        child = _Noted()
        yield self._note(
            key, lambda: {"type": "array", "items": child.schema(), "maxItems": limit}, child
        )

    def renamed(self, key: str, to: str) -> Fields:
        self._renamed[to] = key
        self._optional.setdefault(key, None)
        return self

    def error(self) -> CraftcacheError:
        for key in ("type", "title"):
            self._note(key, {"type": "string"}, None)
        self._note("status", {"type": "integer"}, None)
        return super().error()

    def _words(self, key: str) -> str:
        return self._note(key, {"type": "string"}, SAMPLE_TEXT)


_ANY_KEY = "*"

_COUNT: JsonSchema = {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER}


class _Everything(dict[str, Any]):
    """The whole of a noted object: one key stands for all, and paths are absolute."""

    def __iter__(self) -> Iterator[str]:
        return iter((_ANY_KEY,))

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401  # as dict has it
        return "/x" if key == "directory" else default


def _text(limit: int, *, empty: bool = False) -> JsonSchema:
    schema: JsonSchema = {"type": "string", "maxLength": limit}
    return schema if empty else schema | {"minLength": 1}
