"""A circuit breaker, as its states have it."""

from __future__ import annotations

from itertools import pairwise

from craftcached.fetch.circuit import FIRST_SECONDS, LONGEST_SECONDS, Circuit


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
