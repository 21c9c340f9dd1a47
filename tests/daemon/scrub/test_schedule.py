"""Which file is hashed next, when, and how fast."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from craftcached.scrub.schedule import (
    BYTES_PER_SECOND,
    ScheduledFile,
    ScrubTurn,
    scheduled_turns,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

PERIOD = 7 * 86400.0
TERABYTE = 10**12


def next_turn(files: Iterable[ScheduledFile], now: float, period: float) -> ScrubTurn | None:
    return next(iter(scheduled_turns(files, now, period)), None)


def test_nothing_is_due_where_nothing_is_or_all_is_fresh() -> None:
    assert next_turn([], 0.0, PERIOD) is None
    turn = next_turn([ScheduledFile("a", 1, 1000.0)], 2000.0, PERIOD)
    assert turn is not None
    assert turn.at == 1000.0 + PERIOD / 2


def test_the_one_that_was_hashed_longest_ago_comes_first() -> None:
    files = [ScheduledFile(name, 1, at) for name, at in (("b", 5.0), ("a", 3.0), ("c", 4.0))]
    turn = next_turn(files, PERIOD, PERIOD)
    assert turn is not None
    assert (turn.file.path, turn.bytes_per_second) == ("a", BYTES_PER_SECOND)


def test_what_could_not_be_mended_is_tried_again_soon() -> None:
    files = [ScheduledFile("a", 1, 0.0), ScheduledFile("b", 1, 900.0, is_broken=True)]
    turn = next_turn(files, 1000.0, PERIOD)
    assert turn is not None
    assert (turn.file.path, turn.at) == ("b", 1500.0)


def test_it_hurries_and_goes_first_where_it_would_be_late() -> None:
    file = ScheduledFile("a", 1000 * TERABYTE, 0.0)
    early, late = (next_turn([file], at * PERIOD, PERIOD) for at in (0.5, 0.9))
    assert early is not None
    assert late is not None
    assert early.is_patient
    assert not late.is_patient
    assert late.bytes_per_second > early.bytes_per_second > BYTES_PER_SECOND


@given(
    st.lists(st.tuples(st.integers(0, TERABYTE), st.floats(0, PERIOD)), min_size=1, max_size=30),
    st.floats(0.01, 30.0),
)
def test_every_file_is_hashed_again_within_the_period(
    files: list[tuple[int, float]], days: float
) -> None:
    """Whatever sizes and ages: simulated over some periods, at the rate that it asks for."""
    period = days * 86400.0
    state = {
        str(number): ScheduledFile(str(number), size, age / PERIOD * period)
        for number, (size, age) in enumerate(files)
    }
    now = period
    while now < 4 * period:
        turn = next_turn(state.values(), now, period)
        assert turn is not None
        if turn.at > now:  # nothing is due: it is asked again then
            now = turn.at
            continue
        now += turn.file.size / turn.bytes_per_second
        oldest = min(file.hashed_at for file in state.values())
        # All that was older than the half at the start may be late by what they take together.
        assert now - oldest <= 1.5 * period + 2.0 * len(state)
        if now > 3 * period:
            assert now - oldest <= period + 2.0 * len(state)
        state[turn.file.path] = replace(state[turn.file.path], hashed_at=now)
