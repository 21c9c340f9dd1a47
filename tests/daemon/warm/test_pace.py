"""How fast a warm goes on, and how long it will still take, by a clock of the test's own."""

from __future__ import annotations

from craftcache.wire import Progress
from craftcached.warm.pace import WarmPace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def fetching(file: str, done: int, total: int | None) -> Progress:
    return Progress("org/model", file, done, total, "fetching")


def test_nothing_is_said_of_the_rate_before_anything_came() -> None:
    pace = WarmPace("org/model", Clock())
    coming = pace.coming()
    assert (coming.state, coming.done, coming.total) == ("queued", 0, None)
    assert (coming.bytes_per_second, coming.seconds_left) == (None, None)


def test_the_rate_and_what_is_left_are_of_all_files_together() -> None:
    clock = Clock()
    pace = WarmPace("org/model", clock)
    for second in range(11):
        clock.now = 100.0 + second
        pace.heard(fetching("a", 1000 + 100 * second, 5000))
        pace.heard(fetching("b", 300 * second, 4000))
    coming = pace.coming()
    assert (coming.state, coming.done, coming.total) == ("fetching", 5000, 9000)
    assert coming.bytes_per_second == 400
    assert coming.seconds_left == 10


def test_what_was_there_from_an_interrupted_download_is_not_counted_as_speed() -> None:
    clock = Clock()
    pace = WarmPace("org/model", clock)
    pace.heard(fetching("a", 0, 10_000))
    pace.heard(fetching("a", 9000, 10_000))
    clock.now += 2
    pace.heard(fetching("a", 9200, 10_000))
    assert pace.coming().bytes_per_second == 100


def test_bytes_that_are_fetched_again_leave_no_rate_below_nothing() -> None:
    clock = Clock()
    pace = WarmPace("org/model", clock)
    pace.heard(fetching("a", 1, 10_000))
    clock.now += 1
    pace.heard(fetching("a", 9000, 10_000))
    clock.now += 1
    pace.heard(fetching("a", 100, 10_000))
    assert pace.coming().bytes_per_second is None
    clock.now += 1
    pace.heard(fetching("a", 600, 10_000))
    assert pace.coming().bytes_per_second == 500


def test_a_stalled_download_gets_slower_and_slower() -> None:
    clock = Clock()
    pace = WarmPace("org/model", clock)
    pace.heard(fetching("a", 1, 10_000))
    clock.now += 1
    pace.heard(fetching("a", 1001, 10_000))
    rates = []
    for _ in range(3):
        clock.now += 5
        rates.append(pace.coming().bytes_per_second or 0.0)
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1] > 0


def test_after_the_bytes_come_other_states() -> None:
    pace = WarmPace("org/model", Clock())
    pace.heard(fetching("a", 10, 10))
    pace.heard(Progress("org/model", "a", 10, 10, "inspecting"))
    coming = pace.coming()
    assert (coming.state, coming.seconds_left, coming.bytes_per_second) == (
        "inspecting",
        None,
        None,
    )


def test_a_size_that_is_not_known_leaves_the_end_open() -> None:
    clock = Clock()
    pace = WarmPace("org/model", clock)
    pace.heard(fetching("a", 1, None))
    clock.now += 1
    pace.heard(fetching("a", 101, None))
    coming = pace.coming()
    assert (coming.total, coming.seconds_left, coming.bytes_per_second) == (None, None, 100)
