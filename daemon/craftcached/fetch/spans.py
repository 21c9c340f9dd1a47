"""Ranges of a file's bytes, and sets of them: pure arithmetic."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Span", "SpanSet"]


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The bytes of a file from ``start`` up to, not including, ``stop``."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many bytes that is."""
        return self.stop - self.start


class SpanSet:
    """A set of bytes, kept as sorted spans that neither touch nor overlap."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for span in spans:
            self.add(span)

    def __iter__(self) -> Iterator[Span]:
        return map(Span, self._starts, self._stops)

    @property
    def size(self) -> int:
        """How many bytes are in the set."""
        return sum(self._stops) - sum(self._starts)

    def add(self, span: Span) -> None:
        """Put all bytes of ``span`` in, those that are there already included."""
        if span.size <= 0:
            return
        first = bisect_left(self._stops, span.start)
        last = bisect_right(self._starts, span.stop)
        if first < last:
            span = Span(min(span.start, self._starts[first]), max(span.stop, self._stops[last - 1]))
        self._starts[first:last] = [span.start]
        self._stops[first:last] = [span.stop]

    def remove(self, span: Span) -> None:
        """Take all bytes of ``span`` out, as far as they are there."""
        if span.size <= 0:
            return
        first = bisect_right(self._stops, span.start)
        last = bisect_left(self._starts, span.stop)
        if first >= last:
            return
        rest = [
            Span(self._starts[first], span.start),
            Span(span.stop, self._stops[last - 1]),
        ]
        kept = [part for part in rest if part.size > 0]
        self._starts[first:last] = [part.start for part in kept]
        self._stops[first:last] = [part.stop for part in kept]

    def end_of_run(self, offset: int) -> int:
        """Where the unbroken run of bytes that begins at ``offset`` ends; ``offset`` if none."""
        index = bisect_right(self._starts, offset) - 1
        return max(offset, self._stops[index]) if index >= 0 else offset

    def gaps(self, within: Span) -> Iterator[Span]:
        """The runs of bytes inside ``within`` that are not in the set, in order."""
        start = within.start
        for index in range(bisect_right(self._stops, start), len(self._starts)):
            if self._starts[index] >= within.stop:
                break
            if self._starts[index] > start:
                yield Span(start, self._starts[index])
            start = self._stops[index]
        if start < within.stop:
            yield Span(start, within.stop)
