"""Value types that stand on the wire as JSON objects, their attributes as the keys.

A class's annotations are the one table that both directions go by. An attribute with a default may
be absent, as it is where an earlier release writes. ``Annotated`` names the reader where the type
alone does not say which values are right: a text's length, a list's.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from craftcache.errors import CraftcacheError

from .fields import MAX_FILENAME, MAX_PATH, MAX_REVISION, MAX_SOURCE, Fields

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "AtMost",
    "Filename",
    "JsonRecord",
    "PathText",
    "Revision",
    "Sha256",
    "Source",
    "read_record",
    "record_fields",
    "text",
    "texts",
]

Reader: TypeAlias = Callable[[Fields, str], Any]
"""Reads the value of a key, and refuses what it may not be."""

T = TypeVar("T")


def text(limit: int, *, empty: bool = False) -> Reader:
    """Reads a string of at most ``limit`` characters."""
    return lambda given, key: given.text(key, limit, empty=empty)


def texts(count: int, limit: int) -> Reader:
    """Reads a list of at most ``count`` strings of at most ``limit`` characters each."""
    return lambda given, key: given.texts(key, count, limit)


class AtMost(int):
    """The largest number of items of a list of records."""


Source: TypeAlias = Annotated[str, text(MAX_SOURCE)]
Revision: TypeAlias = Annotated[str, text(MAX_REVISION)]
Filename: TypeAlias = Annotated[str, text(MAX_FILENAME)]
PathText: TypeAlias = Annotated[str, text(MAX_PATH)]
Sha256: TypeAlias = Annotated[str, lambda given, key: given.sha256(key)]


class JsonRecord:
    """A dataclass that is a JSON object on the wire; inherit from it."""

    __slots__ = ()

    def to_fields(self) -> dict[str, Any]:
        """The value as a JSON object."""
        return record_fields(self)

    @classmethod
    def parse(cls, given: Fields, /) -> Self:
        """The value with these keys; others are ignored.

        Raises:
            Exception: It is malformed: the refusal of ``given``.
        """
        return read_record(cls, given)


def record_fields(record: Any) -> dict[str, Any]:  # noqa: ANN401  # any dataclass
    """A dataclass as a JSON object with its attributes as keys."""
    return {field.name: _plain(getattr(record, field.name)) for field in fields(record)}


def read_record(cls: type[T], given: Fields) -> T:
    """A dataclass of the keys of a JSON object; see JsonRecord.parse."""
    known: Any = cls
    return cls(**{name: read(given, name) for name, read in _readers(known).items()})


def _plain(value: Any) -> Any:  # noqa: ANN401  # whatever a record holds
    if isinstance(value, JsonRecord):
        return value.to_fields()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, CraftcacheError):
        return value.to_problem()
    return value.isoformat() if isinstance(value, datetime) else value


@cache
def _readers(cls: Any) -> dict[str, Reader]:  # noqa: ANN401  # any dataclass
    """The reader of each attribute of a dataclass."""
    hints = typing.get_type_hints(cls, include_extras=True)
    readers = {}
    for field in fields(cls):
        read = _reader(hints[field.name])
        if isinstance(field.default, bool):
            read = _flag(default=field.default)
        elif field.default is not MISSING:
            read = _optional(read, field.default)
        elif field.default_factory is not MISSING:
            read = _optional(read, field.default_factory())
        readers[field.name] = read
    return readers


def _reader(hint: Any) -> Reader:  # noqa: ANN401  # a type, as get_type_hints returns it
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        of, bound = arguments
        return _list(typing.get_args(of)[0], bound) if isinstance(bound, AtMost) else bound
    if origin in (typing.Union, types.UnionType):
        [of] = [each for each in arguments if each is not type(None)]
        return _optional(_reader(of), None)
    if origin is Literal:
        return lambda given, key: given.choice(key, {each: each for each in arguments})
    if origin is Mapping:
        return _counts
    if isinstance(hint, type) and issubclass(hint, JsonRecord):
        return lambda given, key: hint.parse(given.child(key))
    return _SIMPLE[hint]


def _list(of: type[JsonRecord], limit: int) -> Reader:
    return lambda given, key: tuple(map(of.parse, given.children(key, limit)))


def _optional(read: Reader, default: object) -> Reader:
    return lambda given, key: default if given.is_null(key) else read(given, key)


def _flag(*, default: bool) -> Reader:
    return lambda given, key: given.optional_flag(key, default=default)


def _counts(given: Fields, key: str) -> dict[str, int]:
    counts = given.child(key)
    return {name: counts.integer(name) for name in counts.whole}


_SIMPLE: dict[object, Reader] = {
    bool: lambda given, key: given.flag(key),
    int: lambda given, key: given.integer(key),
    float: lambda given, key: given.seconds(key),
    datetime: lambda given, key: given.moment(key),
    CraftcacheError: lambda given, key: given.child(key).error(),
}
