"""Which models of a cache are meant, by their age, size and name: filters of ``ls`` and ``prune``.

    accessed>30d      last loaded or warmed more than 30 days ago, or, if never, published then
    published<12h     its revision was published less than 12 hours ago
    size>=1GB         its files have a gigabyte or more
    source=org/*      its source matches the pattern; source!=org/* those that do not
    pinned=yes        it is pinned, or pinned=no

Spans of time are in s, m, h, d or w; sizes in bytes, or kB to PB, which are decimal.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Protocol

from craftcache.durations import parse_span
from craftcache.errors import InvalidSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Filterable", "ModelFilter", "ModelTraits", "are_met", "parse_size"]

_FILTER = re.compile(r"([a-z]+)\s*(<=|>=|!=|=|<|>)\s*(.+)", re.ASCII | re.DOTALL)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMGTP]?)B?", re.ASCII)

_SIZES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}

_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FLAGS = {"yes": True, "no": False}

_HINT: Final = "Write one like 'accessed>30d', 'size>1GB', 'source=org/*' or 'pinned=no'"


class Filterable(Protocol):
    """What filters look at."""

    @property
    def source(self) -> str:
        """The source as shown to people."""
        ...

    @property
    def size(self) -> int:
        """Bytes of all files."""
        ...

    @property
    def is_pinned(self) -> bool:
        """Whether it stays until it is unpinned."""
        ...

    @property
    def published_at(self) -> float | None:
        """When its revision was published, in seconds since the epoch; None where not known."""
        ...

    @property
    def last_used_at(self) -> float | None:
        """When it was last loaded or warmed, in seconds since the epoch; None where not known."""
        ...


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """A Filterable."""

    source: str
    size: int
    is_pinned: bool
    published_at: float | None
    last_used_at: float | None


@dataclass(frozen=True, slots=True)
class ModelFilter:
    """One condition.

    Attributes:
        text: The condition as it was written.
        field: ``accessed``, ``published``, ``size``, ``source`` or ``pinned``.
        relation: ``<``, ``<=``, ``>``, ``>=``, ``=`` or ``!=``.
        value: Seconds, bytes, a pattern or ``yes`` and ``no``.
    """

    text: str
    field: str
    relation: str
    value: float | str

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> ModelFilter:
        """The filter that is written so.

        Raises:
            InvalidSource: It is none.
        """
        found = _FILTER.fullmatch(text.strip())
        if found is None:
            raise _refused(text)
        field, relation, written = found[1], found[2], found[3].strip()
        is_order = relation in _ORDERS
        if field in ("accessed", "published") and is_order:
            return cls(text, field, relation, parse_span(written))
        if field == "size" and is_order:
            return cls(text, field, relation, parse_size(written))
        if field == "source" and not is_order:
            return cls(text, field, relation, written)
        if field == "pinned" and not is_order and written in _FLAGS:
            return cls(text, field, relation, written)
        raise _refused(text)

    def is_met_by(self, model: Filterable, now: float) -> bool:
        """Whether the condition holds of a model; of what is not known none does.

        Args:
            model: The model.
            now: Time in seconds since the epoch.
        """
        if isinstance(self.value, str):
            holds = (
                fnmatchcase(model.source, self.value)
                if self.field == "source"
                else model.is_pinned is _FLAGS[self.value]
            )
            return holds is (self.relation == "=")
        order = _ORDERS[self.relation]
        if self.field == "size":
            return order(model.size, self.value)
        used = model.last_used_at if self.field == "accessed" else None
        moment = model.published_at if used is None else used
        return moment is not None and order(now - moment, self.value)


def are_met(filters: Iterable[ModelFilter], model: Filterable, now: float) -> bool:
    """Whether all conditions hold of a model."""
    return all(condition.is_met_by(model, now) for condition in filters)


def parse_size(text: str) -> int:
    """Bytes, given as a number or in decimal units, like 500000000 or 20GB.

    Raises:
        InvalidSource: It is neither.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InvalidSource(f"{text[:80]!r} is no size", hint="Write one like 500000000 or 20GB")
    return round(float(found[1]) * _SIZES[found[2]])


def _refused(text: str) -> InvalidSource:
    return InvalidSource(f"{text[:80]!r} is no filter", hint=_HINT)
