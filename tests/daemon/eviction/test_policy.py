"""What may go and what must stay, for any set of models."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from craftcached.eviction.policy import Blob, Plan, plan_eviction, used_bytes
from craftcached.eviction.policy import EvictionCandidate as Candidate

BLOBS = st.integers(0, 5).flatmap(
    lambda count: st.tuples(
        *(
            st.builds(Blob, st.just(1), st.just(inode), st.integers(0, 100), st.booleans())
            for inode in range(count)
        )
    )
)


@st.composite
def caches(draw: st.DrawFn) -> list[Candidate]:
    """Models that share some of a few blobs."""
    blobs = draw(BLOBS)
    held = st.frozensets(st.sampled_from(blobs)) if blobs else st.just(frozenset[Blob]())
    return [
        Candidate(
            key=str(number),
            source=f"org/{number}",
            blobs=draw(held),
            last_use=draw(st.integers(0, 5)),
            is_kept=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 6)))
    ]


WANTED = st.integers(-10, 700)


def freed_by(models: list[Candidate], victims: tuple[Candidate, ...]) -> frozenset[Blob]:
    """The blobs that nobody holds any more without ``victims``."""
    kept = [model for model in models if model not in victims]
    return all_blobs(models) - all_blobs(kept)


def all_blobs(models: list[Candidate]) -> frozenset[Blob]:
    return frozenset().union(*(model.blobs for model in models))


@given(caches(), WANTED)
def test_what_is_pinned_or_in_use_stays(models: list[Candidate], wanted: int) -> None:
    plan = plan_eviction(models, wanted)
    assert not any(model.is_kept for model in plan.victims)
    assert not any(blob.in_use for blob in freed_by(models, plan.victims))


@given(caches(), WANTED)
def test_each_freed_blob_counts_once(models: list[Candidate], wanted: int) -> None:
    plan = plan_eviction(models, wanted)
    assert plan.freed == sum(blob.size for blob in freed_by(models, plan.victims))
    kept = [model for model in models if model not in plan.victims]
    assert used_bytes(models) - used_bytes(kept) == plan.freed


@given(caches(), WANTED)
def test_no_more_goes_than_is_wanted(models: list[Candidate], wanted: int) -> None:
    plan = plan_eviction(models, wanted)
    if plan.victims:
        without_last = freed_by(models, plan.victims[:-1])
        assert sum(blob.size for blob in without_last) < wanted
    if wanted <= 0:
        assert plan == Plan((), 0)


@given(caches(), WANTED)
def test_nothing_goes_for_nothing(models: list[Candidate], wanted: int) -> None:
    plan = plan_eviction(models, wanted)
    freed = freed_by(models, plan.victims)
    assert all(model.blobs & freed for model in plan.victims)


@given(caches(), WANTED)
def test_what_is_wanted_is_freed_if_it_can_be(models: list[Candidate], wanted: int) -> None:
    """Whatever stays of what could go would free nothing, or a blob that is in use."""
    plan = plan_eviction(models, wanted)
    if plan.freed >= wanted:
        return
    for model in models:
        if not model.is_kept and model not in plan.victims:
            more = freed_by(models, (*plan.victims, model)) - freed_by(models, plan.victims)
            assert not more or any(blob.in_use for blob in more)


@given(st.permutations(range(5)), st.integers(1, 500))
def test_the_longest_unused_go_first(order: list[int], wanted: int) -> None:
    models = [
        Candidate(str(n), f"org/{n}", frozenset({Blob(1, n, 100, in_use=False)}), last_use=when)
        for n, when in enumerate(order)
    ]
    plan = plan_eviction(models, wanted)
    assert [model.last_use for model in plan.victims] == list(range(-(-wanted // 100)))


def test_a_shared_codec_in_use_protects_only_its_last_holder() -> None:
    codec = Blob(1, 0, 10, in_use=True)
    small, large, melody = (
        Candidate(name, name, frozenset({codec, Blob(1, inode, 100, in_use=False)}), inode)
        for inode, name in enumerate(("small", "large", "melody"), 1)
    )
    plan = plan_eviction([melody, small, large], 10**6)
    assert plan == Plan((small, large), 200)


def test_one_that_frees_nothing_by_itself_goes_with_the_last_holder_or_not_at_all() -> None:
    blob = Blob(1, 0, 10, in_use=False)
    branch = Candidate("branch", "org/m", frozenset({blob}), 1)
    commit = Candidate("commit", "org/m@c0ffee", frozenset({blob}), 2)
    for models in itertools.permutations([branch, commit]):
        assert plan_eviction(models, 10) == Plan((branch, commit), 10)
        pinned = [replace(model, is_kept=model.key == "commit") for model in models]
        assert plan_eviction(pinned, 10) == Plan((), 0)
