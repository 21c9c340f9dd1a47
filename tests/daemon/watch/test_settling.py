"""When a directory is taken: the states as a function of looks and times."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from craftcached.watch.snapshot import Pair, Snapshot
from craftcached.watch.state import WatchState

SETTLE = 10.0
HERE = (1, 2)


def pair(*stamps: str) -> Pair:
    return tuple(zip(("state_dict.bin", "compression_state_dict.bin"), stamps, strict=True))


def seen(*stamps: str) -> Snapshot:
    return Snapshot(HERE, pair(*stamps))


def test_a_pair_is_due_when_it_was_quiet_for_the_settle_time() -> None:
    situation = WatchState(SETTLE).saw(seen("a", "b"), 100.0)
    assert (situation.state, situation.due_at) == ("settling", 110.0)
    assert situation.saw(seen("a", "b"), 109.0).due_at == 110.0


def test_each_change_of_either_file_begins_the_settle_time_anew() -> None:
    situation = WatchState(SETTLE).saw(seen("a", "b"), 100.0).saw(seen("a", "c"), 109.0)
    assert situation.due_at == 119.0


def test_a_missing_file_is_named() -> None:
    situation = WatchState(SETTLE).saw(Snapshot(HERE, pair("a", "b")[:1], ("x.bin",)), 0.0)
    assert (situation.state, situation.detail, situation.due_at) == (
        "partial",
        "waits for x.bin",
        None,
    )


def test_absent_becomes_gone_once_it_was_there() -> None:
    assert WatchState(SETTLE).saw(Snapshot(), 0.0).state == "absent"
    assert WatchState(SETTLE).saw(seen("a", "b"), 0.0).saw(Snapshot(), 1.0).state == "gone"


def test_a_fault_is_invalid_and_never_due() -> None:
    situation = WatchState(SETTLE).saw(Snapshot(HERE, fault="it is a link"), 0.0)
    assert (situation.state, situation.detail, situation.due_at) == (
        "invalid",
        "it is a link",
        None,
    )


def test_what_was_published_is_ready_and_is_not_taken_again() -> None:
    situation = WatchState(SETTLE).saw(seen("a", "b"), 0.0).took()
    assert situation.state == "verifying"
    assert situation.due_at is None
    situation = situation.published().saw(seen("a", "b"), 50.0)
    assert (situation.state, situation.due_at) == ("ready", None)


def test_what_was_refused_stays_refused_until_it_changes() -> None:
    situation = WatchState(SETTLE).saw(seen("a", "b"), 0.0).took().refused("unsafe")
    assert (situation.state, situation.detail, situation.due_at) == ("invalid", "unsafe", None)
    assert situation.saw(seen("a", "c"), 20.0).state == "settling"


def test_what_failed_for_another_reason_is_tried_again() -> None:
    situation = WatchState(SETTLE).saw(seen("a", "b"), 0.0).took().refused("disk full", 70.0)
    assert (situation.state, situation.due_at) == ("invalid", 70.0)
    assert situation.took().published().state == "ready"


def test_a_change_during_verification_settles_while_the_older_state_is_in_hand() -> None:
    situation = WatchState(SETTLE).saw(seen("a", "b"), 0.0).took().saw(seen("a", "c"), 11.0)
    assert (situation.state, situation.due_at) == ("settling", None)
    situation = situation.changed(12.0)
    assert (situation.state, situation.due_at) == ("settling", 22.0)


def test_a_state_known_from_before_a_restart_is_ready_at_the_first_look() -> None:
    known = WatchState(SETTLE, judged=pair("a", "b"), was_there=True)
    assert known.saw(seen("a", "b"), 0.0).state == "ready"
    assert known.saw(Snapshot(), 0.0).state == "gone"


def arriving(*stamps: str, name: str = ".state_dict.bin.Xa81fp", stamp: str) -> Snapshot:
    return replace(seen(*stamps), beside=((name, stamp),))


def test_a_file_that_grows_beside_the_pair_keeps_it_from_being_taken() -> None:
    """As rsync holds one for longer than the settle time, between the two files of a pair."""
    situation = WatchState(SETTLE).saw(seen("a", "b"), 0.0).took().published()
    for second in range(100, 300):
        situation = situation.saw(arriving("a", "c", stamp=str(second)), float(second))
        assert (situation.state, situation.due_at) == ("settling", second + 3 * SETTLE)
    situation = situation.saw(seen("d", "c"), 300.0)
    assert situation.due_at == 300.0 + SETTLE


def test_a_file_on_its_way_that_stalls_is_waited_for_but_not_for_ever() -> None:
    situation = WatchState(SETTLE).saw(arriving("a", "b", stamp="1"), 0.0)
    assert situation.saw(arriving("a", "b", stamp="1"), 25.0).due_at == 3 * SETTLE


def test_a_hidden_file_that_is_none_of_the_pair_s_only_has_to_be_quiet() -> None:
    situation = WatchState(SETTLE).saw(arriving("a", "b", name=".gitignore", stamp="1"), 0.0)
    assert situation.due_at == SETTLE
    situation = situation.saw(arriving("a", "b", name=".gitignore", stamp="2"), 5.0)
    assert situation.due_at == 5.0 + SETTLE


def test_a_log_that_grows_beside_the_pair_for_ever_delays_it_for_a_while() -> None:
    situation, now = WatchState(SETTLE), 0.0
    while (due := situation.due_at) is None or now < due:
        now += 1.0
        situation = situation.saw(replace(seen("a", "b"), others=str(now)), now)
    assert 2 * SETTLE < now <= 6 * SETTLE + 1


def test_a_file_that_stops_moving_beside_the_pair_delays_it_by_the_settle_time() -> None:
    situation = WatchState(SETTLE).saw(replace(seen("a", "b"), others="1"), 0.0)
    situation = situation.saw(replace(seen("a", "b"), others="2"), 4.0)
    assert situation.due_at == 4.0 + SETTLE


class Writers(RuleBasedStateMachine):
    """Any writer and any verdict, against what is promised of each generation."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.look = Snapshot()
        self.changed_at = 0.0
        self.situation = WatchState(SETTLE)
        self.published: list[Pair] = []

    def write(self, look: Snapshot) -> None:
        if look != self.look:
            self.changed_at = self.now
        self.look = look
        self.situation = self.situation.saw(look, self.now)

    @rule(first=st.sampled_from("abc"), second=st.sampled_from("abc"))
    def writes(self, first: str, second: str) -> None:
        self.write(seen(first, second))

    @rule(name=st.sampled_from(["state_dict.bin", "DONE"]))
    def removes(self, name: str) -> None:
        self.write(Snapshot(HERE, missing=(name,)))

    @rule()
    def links(self) -> None:
        self.write(Snapshot(HERE, fault="state_dict.bin is a link"))

    @rule()
    def removes_all(self) -> None:
        self.write(Snapshot())

    @rule(seconds=st.floats(0.1, 30.0))
    def waits(self, seconds: float) -> None:
        self.now += seconds
        self.situation = self.situation.saw(self.look, self.now)

    @precondition(lambda self: (self.situation.due_at or 1e9) <= self.now)
    @rule()
    def takes(self) -> None:
        quiet = self.now - self.changed_at
        assert self.look.is_complete
        assert quiet >= SETTLE or self.situation.judged == self.look.pair
        self.situation = self.situation.took()
        assert self.situation.state == "verifying"

    @precondition(lambda self: self.situation.in_hand is not None)
    @rule(how=st.sampled_from(["published", "refused", "failed", "changed"]))
    def concludes(self, how: str) -> None:
        in_hand = self.situation.in_hand
        assert in_hand is not None
        match how:
            case "published" if in_hand == self.look.pair:  # the copy looks again at its end
                self.published.append(in_hand)
                self.situation = self.situation.published()
            case "refused":
                self.situation = self.situation.refused("unsafe")
            case "failed":
                self.situation = self.situation.refused("disk full", self.now + 60)
            case _:
                self.situation = self.situation.changed(self.now)

    @invariant()
    def only_what_was_published_is_ready(self) -> None:
        if self.situation.state == "ready":
            assert self.look.pair in self.published

    @invariant()
    def what_is_complete_comes_to_an_end(self) -> None:
        """Nothing that could become a generation is forgotten."""
        if self.situation.state == "settling":
            assert self.situation.due_at is not None or self.situation.in_hand is not None

    @invariant()
    def nothing_incomplete_is_ever_due(self) -> None:
        if not self.look.is_complete:
            assert self.situation.due_at is None
            assert self.situation.state in ("absent", "gone", "partial", "invalid")


TestWriters = Writers.TestCase
TestWriters.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
