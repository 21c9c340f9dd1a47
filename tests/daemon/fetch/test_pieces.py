"""The arithmetic of ranges, against sets of single bytes as its model."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from craftcached.fetch.pieces import Pieces
from craftcached.fetch.spans import Span, SpanSet

TOTAL = 40

spans = st.tuples(st.integers(0, TOTAL), st.integers(0, TOTAL)).map(
    lambda ends: Span(min(ends), max(ends))
)


def bytes_of(span: Span) -> set[int]:
    return set(range(span.start, span.stop))


@given(st.lists(st.tuples(st.booleans(), spans)), spans)
def test_span_set_equals_a_set_of_bytes(steps: list[tuple[bool, Span]], window: Span) -> None:
    ours, model = SpanSet(), set[int]()
    for adds, span in steps:
        if adds:
            ours.add(span)
            model |= bytes_of(span)
        else:
            ours.remove(span)
            model -= bytes_of(span)
    kept = list(ours)
    assert set().union(*map(bytes_of, kept)) == model
    assert ours.size == len(model)
    assert all(a.stop < b.start for a, b in pairwise(kept))
    gaps = list(ours.gaps(window))
    assert set().union(*map(bytes_of, gaps)) == bytes_of(window) - model
    assert all(gap.size for gap in gaps)
    end = ours.end_of_run(window.start)
    assert bytes_of(Span(window.start, end)) <= model
    assert end not in model


class Download(RuleBasedStateMachine):
    """Workers that claim, write and fail in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = Pieces(TOTAL)
        self.claims: dict[Span, int] = {}
        self.present = set[int]()

    @rule(size=st.integers(1, TOTAL))
    def claim(self, size: int) -> None:
        span = self.pieces.claim(size)
        missing = set(range(TOTAL)) - self.present
        for held in self.claims:
            missing -= bytes_of(held)
        if span is None:
            assert not missing
            assert not self.pieces.has_missing
            return
        assert span.start == min(missing)
        assert bytes_of(span) <= missing
        assert 0 < span.size <= size
        self.claims[span] = span.start

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        span = data.draw(st.sampled_from(sorted(self.claims)))
        position = self.claims[span]
        part = Span(position, data.draw(st.integers(position, span.stop)))
        self.pieces.written(part)
        self.present |= bytes_of(part)
        self.claims[span] = part.stop
        assert self.pieces.written_of(span) == part.stop - span.start

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        span = data.draw(st.sampled_from(sorted(self.claims)))
        del self.claims[span]
        self.pieces.give_back(span)

    @invariant()
    def counts(self) -> None:
        assert self.pieces.present_bytes == len(self.present)
        assert self.pieces.is_done == (len(self.present) == TOTAL)


TestDownload = Download.TestCase


@given(st.lists(spans))
def test_what_an_earlier_run_left_is_not_claimed(present: list[Span]) -> None:
    kept = SpanSet(present)
    pieces = Pieces(TOTAL, kept)
    claimed = set[int]()
    while claim := pieces.claim(7):
        claimed |= bytes_of(claim)
        pieces.written(claim)
    assert claimed == set(range(TOTAL)) - set().union(*map(bytes_of, kept))
    assert pieces.is_done
