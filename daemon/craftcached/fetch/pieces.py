"""The bytes of a file that are present, under way and to be asked for next.

All mutable state of a download in ranges; every step is synchronous, so there is no lock.
A byte is in one of three states::

    missing --claim--> under way --written--> present
       ^                   |
       +----give_back------+
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .spans import Span, SpanSet

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Pieces"]


class Pieces:
    """The ranges of one file of known size.

    Args:
        total: The file's size in bytes.
        present: Ranges that an earlier run left behind.
    """

    def __init__(self, total: int, present: Iterable[Span] = ()) -> None:
        self._total = total
        self._present = SpanSet(present)
        self._taken = SpanSet(self._present)
        """Ranges that are present or under way."""
        self._present_bytes = self._present.size

    @property
    def total(self) -> int:
        """The file's size in bytes."""
        return self._total

    @property
    def present_bytes(self) -> int:
        """Number of bytes written."""
        return self._present_bytes

    @property
    def is_done(self) -> bool:
        """Whether every byte is written."""
        return self._present_bytes == self._total

    @property
    def has_missing(self) -> bool:
        """Whether there are bytes to claim."""
        return next(self._taken.gaps(Span(0, self._total)), None) is not None

    def claim(self, size: int, *, boundary: int | None = None) -> Span | None:
        """Take the first missing bytes, at most ``size``; None if nothing is missing.

        Lowest first, because the hash wants the bytes in order.

        Args:
            size: The most bytes.
            boundary: Bytes at whose multiples the claim ends, if it has not before.
        """
        gap = next(self._taken.gaps(Span(0, self._total)), None)
        if gap is None:
            return None
        stop = min(gap.stop, gap.start + size)
        if boundary is not None:
            stop = min(stop, (gap.start // boundary + 1) * boundary)
        span = Span(gap.start, stop)
        self._taken.add(span)
        return span

    def written(self, span: Span) -> None:
        """Note that a claimed span, or a part of one, is in the file now."""
        self._present.add(span)
        self._present_bytes += span.size

    def written_of(self, span: Span) -> int:
        """Number of bytes of ``span`` that are written."""
        return span.size - sum(gap.size for gap in self._present.gaps(span))

    def give_back(self, claim: Span) -> None:
        """End a claim: its bytes that are not written are missing again."""
        for gap in list(self._present.gaps(claim)):
            self._taken.remove(gap)
