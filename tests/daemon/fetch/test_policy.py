"""Waits, rate limits and the number of connections: pure decisions."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcached.fetch.concurrency import LONGEST_STAY, Concurrency
from craftcached.fetch.faults import Fault, Trouble
from craftcached.fetch.retry import RetryPolicy, requested_wait

POLICY = RetryPolicy(attempts=5, backoff_seconds=1.0, max_backoff_seconds=6.0)


def busy(retry_after: float | None = None) -> Fault:
    return Fault(Trouble.BUSY, "busy", retry_after)


@given(st.integers(1, 4), st.floats(0, 1))
def test_waits_have_full_jitter_under_a_doubling_bound(failures: int, chance: float) -> None:
    assert POLICY.wait(busy(), failures, chance) == chance * min(2.0 ** (failures - 1), 6.0)


@given(st.floats(0, 6), st.floats(0, 1))
def test_no_wait_is_shorter_than_the_origin_asks_for(asked: float, chance: float) -> None:
    wait = POLICY.wait(busy(asked), 1, chance)
    assert wait is not None
    assert wait >= asked


def test_patience_ends() -> None:
    assert POLICY.wait(busy(), 5, 0.5) is None
    assert POLICY.wait(busy(6.1), 1, 0.5) is None


def test_an_expired_signature_is_renewed_at_once_but_not_forever() -> None:
    expired = Fault(Trouble.EXPIRED, "expired")
    assert POLICY.wait(expired, 1, 1.0) == 0.0
    assert POLICY.wait(expired, 2, 1.0) == 2.0
    assert POLICY.wait(expired, 5, 1.0) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "Mon, 23 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"Retry-After": "Mon, 23 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=0'}, None),
        ({"Retry-After": "3", "RateLimit": '"api";r=0;t=55'}, 3.0),
    ],
)
def test_what_origins_ask_for(headers: dict[str, str], seconds: float | None) -> None:
    assert requested_wait(headers, now=datetime(2026, 11, 23, 12, tzinfo=UTC)) == seconds


def climb(limit: int, line: float, steps: int = 12) -> list[int]:
    """Numbers wanted where each connection brings 40 and the line ``line`` at most."""
    ramp = Concurrency(limit)
    numbers = []
    for _ in range(steps):
        ramp.observe(min(ramp.wanted * 40.0, line))
        numbers.append(ramp.wanted)
    return numbers


def test_connections_double_while_the_throughput_grows() -> None:
    assert climb(8, line=1000)[:3] == [2, 4, 8]
    assert max(climb(8, line=1000)) == 8


def test_connections_that_bring_nothing_are_given_up() -> None:
    assert climb(32, line=80)[:4] == [2, 4, 2, 2]


def test_more_is_tried_again_more_and_more_seldom() -> None:
    numbers = climb(32, line=80, steps=200)
    assert set(numbers[1:]) == {2, 4}
    trials = [index for index, number in enumerate(numbers) if number == 4]
    waits = [later - earlier for earlier, later in pairwise(trials)]
    assert waits == sorted(waits)
    assert waits[0] < waits[-1] <= LONGEST_STAY + 2


@pytest.mark.parametrize("wrong", range(4))
def test_one_wrong_measurement_costs_little(wrong: int) -> None:
    ramp = Concurrency(8)
    for interval in range(8):
        ramp.observe(1.0 if interval == wrong else ramp.wanted * 40.0)
    assert ramp.wanted == 8


def test_a_complaint_halves() -> None:
    ramp = Concurrency(8)
    for _ in range(3):
        ramp.observe(ramp.wanted * 40.0)
    ramp.back_off()
    ramp.observe(1e9)
    assert ramp.wanted == 4


@given(st.lists(st.floats(0, 1e9) | st.none()))
def test_the_number_stays_within_its_limits(rates: list[float | None]) -> None:
    ramp = Concurrency(6)
    for rate in rates:
        if rate is None:
            ramp.back_off()
        else:
            ramp.observe(rate)
        assert 1 <= ramp.wanted <= 6
