"""A circuit breaker, as its states have it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from craftcached.fetch.circuit import (
    FIRST_SECONDS,
    LONGEST_LOST_SECONDS,
    LONGEST_SECONDS,
    RETURN_SECONDS,
    Circuit,
)


class Clock:
    """Seconds, which pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Circuit:
    """A circuit after one failure, exactly as long as the times say."""
    circuit = Circuit(clock, lambda: 0.5)
    assert circuit.failed(circuit.asked()) == FIRST_SECONDS
    return circuit


def test_a_server_that_failed_is_left_alone_until_its_time_is_over() -> None:
    clock = Clock()
    circuit = opened(clock)
    assert circuit.is_open
    assert not circuit.may_ask()
    clock.now += FIRST_SECONDS
    assert circuit.may_ask()


def test_one_request_tries_it_then() -> None:
    clock = Clock()
    circuit = opened(clock)
    clock.now += FIRST_SECONDS
    began = circuit.asked()
    assert not circuit.may_ask()
    assert circuit.succeeded(began)
    assert not circuit.is_open
    assert circuit.may_ask()


def test_a_request_that_says_nothing_leaves_the_trial_to_the_next() -> None:
    clock = Clock()
    circuit = opened(clock)
    clock.now += FIRST_SECONDS
    circuit.asked()
    circuit.left()
    assert circuit.may_ask()


def test_each_failed_trial_doubles_the_time_up_to_the_longest() -> None:
    clock = Clock()
    circuit = opened(clock)
    times = [FIRST_SECONDS]
    for _ in range(2000):
        clock.now += times[-1]
        seconds = circuit.failed(circuit.asked())
        assert seconds is not None
        times.append(seconds)
    assert times[:4] == [1.0, 2.0, 4.0, 8.0]
    assert all(before <= after for before, after in pairwise(times))
    assert times[-1] == LONGEST_SECONDS


@pytest.mark.parametrize(
    ("took", "longest"), [(0.0, LONGEST_LOST_SECONDS), (10.0, LONGEST_SECONDS)]
)
def test_one_that_is_lost_is_tried_more_often_where_that_costs_nothing(
    took: float, longest: float
) -> None:
    clock = Clock()
    circuit = opened(clock)
    for _ in range(10):
        clock.now += LONGEST_SECONDS
        began = circuit.asked()
        clock.now += took
        seconds = circuit.failed(began, is_lost=True)
    assert seconds == longest


def test_what_was_under_way_when_it_opened_says_nothing_new() -> None:
    clock = Clock()
    circuit = Circuit(clock, lambda: 0.5)
    began = [circuit.asked() for _ in range(3)]
    clock.now += 1
    assert circuit.failed(began[0]) == FIRST_SECONDS
    assert circuit.failed(began[1]) is None
    assert not circuit.succeeded(began[2])
    assert circuit.is_open


def test_nodes_that_failed_together_do_not_return_together() -> None:
    chances = (lambda: 0.0, lambda: 0.5, lambda: 1.0)
    assert [Circuit(Clock(), chance).trip(8.0) for chance in chances] == [6.0, 8.0, 10.0]


GRACE_SECONDS = 5.0


def lost(clock: Clock, chance: float = 0.5) -> Circuit:
    """A circuit of a server that has served, and is lost now."""
    circuit = Circuit(clock, lambda: chance, GRACE_SECONDS)
    circuit.succeeded(circuit.asked())
    assert circuit.failed(circuit.asked(), is_lost=True) is not None
    return circuit


def tried_until_nobody_waits(circuit: Circuit, clock: Clock) -> float:
    """Let all trials fail; returns the seconds for which the server is awaited."""
    began = clock.now
    while circuit.is_awaited:
        assert not circuit.may_ask()
        clock.now += RETURN_SECONDS * 1.25
        if circuit.may_ask():
            circuit.failed(circuit.asked(), is_lost=True)
    return clock.now - began


def test_one_that_served_and_is_lost_is_awaited_and_tried_often() -> None:
    clock = Clock()
    circuit = lost(clock)
    assert circuit.is_open
    seconds = tried_until_nobody_waits(circuit, clock)
    assert GRACE_SECONDS <= seconds <= GRACE_SECONDS + 2 * RETURN_SECONDS
    # Then it is one that failed, like any other.
    assert (circuit.failed(circuit.asked(), is_lost=True) or 0.0) >= 2 * FIRST_SECONDS
    assert not circuit.is_awaited


def test_nodes_that_lost_one_together_do_not_give_it_up_together() -> None:
    waits = []
    for chance in (0.0, 1.0):
        clock = Clock()
        waits.append(tried_until_nobody_waits(lost(clock, chance), clock))
    assert waits[1] - waits[0] > GRACE_SECONDS / 4


def test_one_that_begins_to_answer_is_asked_by_all_at_once() -> None:
    clock = Clock()
    circuit = lost(clock)
    clock.now += RETURN_SECONDS
    began = circuit.asked()
    assert not circuit.may_ask()
    circuit.answered(began)
    assert not circuit.is_awaited
    assert circuit.may_ask()
    assert circuit.asked() == clock.now
    assert circuit.may_ask()
    # It is no failure that is forgotten until an answer has come whole.
    assert circuit.is_open
    assert circuit.failed(began, is_lost=True) == 2 * FIRST_SECONDS
    assert not circuit.may_ask()
    assert not circuit.is_awaited


def test_a_trial_that_takes_long_is_waited_for() -> None:
    clock = Clock()
    circuit = lost(clock)
    clock.now += RETURN_SECONDS
    circuit.asked()
    clock.now += 2 * GRACE_SECONDS
    awaited = [circuit.is_awaited]
    circuit.left()
    assert [*awaited, circuit.is_awaited] == [True, False]


@pytest.mark.parametrize("has_served", [True, False])
def test_others_are_not_awaited(has_served: bool) -> None:
    clock = Clock()
    circuit = Circuit(clock, lambda: 0.5, GRACE_SECONDS)
    if has_served:
        circuit.succeeded(circuit.asked())
    assert circuit.failed(circuit.asked(), is_lost=not has_served) == FIRST_SECONDS
    assert not circuit.is_awaited


def test_what_answers_wrongly_while_it_is_awaited_is_awaited_no_longer() -> None:
    clock = Clock()
    circuit = lost(clock)
    clock.now += RETURN_SECONDS
    assert circuit.failed(circuit.asked()) == 2 * FIRST_SECONDS
    assert not circuit.is_awaited
