"""What pruning removes, as a pure function: never what something needs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from craftcached.eviction.policy import Blob, EvictionCandidate
from craftcached.eviction.prune import plan_pruning

KEYS = "abcdef"
BLOBS = [Blob(1, number, 10**number, in_use=number == 5) for number in range(6)]


@st.composite
def caches(draw: st.DrawFn) -> list[EvictionCandidate]:
    """Some models, with shared blobs and needs that may form circles."""
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True))
    return [
        EvictionCandidate(
            key,
            f"org/{key}",
            frozenset(draw(st.sets(st.sampled_from(BLOBS), max_size=3))),
            last_use=draw(st.integers(0, 3)),
            is_kept=draw(st.booleans()) and draw(st.booleans()),
            needs=frozenset(draw(st.sets(st.sampled_from(KEYS), max_size=2))) - {key},
        )
        for key in keys
    ]


@given(caches(), st.sets(st.sampled_from(KEYS)))
def test_what_goes_was_chosen_and_nothing_needs_it(
    models: list[EvictionCandidate], chosen: set[str]
) -> None:
    plan = plan_pruning(models, frozenset(chosen))
    there = {model.key for model in models}
    gone = {victim.key for victim in plan.victims}
    assert gone | plan.kept.keys() == chosen & there
    assert not gone & plan.kept.keys()
    for model in models:
        if model.key in gone:
            assert not model.is_kept
            assert not any(blob.in_use for blob in model.blobs)
        else:
            assert not model.needs & gone
    left = {blob for model in models if model.key not in gone for blob in model.blobs}
    had = {blob for model in models for blob in model.blobs}
    assert plan.freed == sum(blob.size for blob in had - left)


@given(caches(), st.sets(st.sampled_from(KEYS)))
def test_no_more_stays_than_must(models: list[EvictionCandidate], chosen: set[str]) -> None:
    plan = plan_pruning(models, frozenset(chosen))
    by_key = {model.key: model for model in models}
    gone = {victim.key for victim in plan.victims}
    for key, reason in plan.kept.items():
        model = by_key[key]
        needers = [each for each in models if key in each.needs and each.key not in gone]
        assert model.is_kept or any(blob.in_use for blob in model.blobs) or needers, reason


def test_what_needs_others_goes_before_them() -> None:
    needed = EvictionCandidate("n", "t5", frozenset({BLOBS[0]}), 0.0, is_needed_only=True)
    model = EvictionCandidate("m", "org/m", frozenset({BLOBS[1]}), 9.0, needs=frozenset("n"))
    plan = plan_pruning([needed, model], frozenset("nm"))
    assert [victim.key for victim in plan.victims] == ["m", "n"]
    alone = plan_pruning([needed, model], frozenset("n"))
    assert (alone.victims, alone.kept) == ((), {"n": "needed by org/m"})
