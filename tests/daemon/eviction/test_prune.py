"""What pruning removes, as a pure function: never what something needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from craftcached.eviction.policy import Blob, EvictionCandidate
from craftcached.eviction.prune import Pruner, plan_pruning
from tests.support import published

if TYPE_CHECKING:
    from pathlib import Path

KEYS = "abcdef"
BLOBS = [Blob(1, number, 10**number, in_use=number == 5) for number in range(6)]


def why(model: EvictionCandidate) -> str:
    return "kept" if model.is_kept else "in use"


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
    plan = plan_pruning(models, frozenset(chosen), why)
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
    plan = plan_pruning(models, frozenset(chosen), why)
    by_key = {model.key: model for model in models}
    gone = {victim.key for victim in plan.victims}
    for kept, reason in plan.kept.items():
        model = by_key[kept]
        needers = [each for each in models if kept in each.needs and each.key not in gone]
        assert model.is_kept or any(blob.in_use for blob in model.blobs) or needers, reason


def test_what_needs_others_goes_before_them() -> None:
    needed = EvictionCandidate("n", "t5", frozenset({BLOBS[0]}), 0.0, is_needed_only=True)
    model = EvictionCandidate("m", "org/m", frozenset({BLOBS[1]}), 9.0, needs=frozenset("n"))
    plan = plan_pruning([needed, model], frozenset("nm"), why)
    assert [victim.key for victim in plan.victims] == ["m", "n"]
    alone = plan_pruning([needed, model], frozenset("n"), why)
    assert (alone.victims, alone.kept) == ((), {"n": "needed by org/m"})


async def test_each_that_stays_has_its_own_reason(tmp_path: Path) -> None:
    async with published.keeping(tmp_path) as parts:
        for name in ("pinned", "held", "needed", "free"):
            await parts.publish(name, file=name.encode())
        await parts.pins.pin(published.source("pinned"), lock=False)
        await parts.holds.hold(published.source("held"), 1000, 3600)
        pruner = Pruner(
            survey=parts.surveyor.survey,
            remove=parts.store.remove,
            is_kept=lambda _: False,
            reason=lambda model: parts.surveyor.reason(model, {}),
            uses=parts.uses,
            tell=lambda *_: None,
        )
        chosen = [published.key(name) for name in ("pinned", "held", "needed", "free")]
        with parts.surveyor.needing(published.key("needed")):
            pruning = await pruner.prune(chosen, dry_run=True)
        assert {each.source.rpartition("/")[2]: each.reason for each in pruning.kept} == {
            "pinned": "pinned",
            "held": "held",
            "needed": "a request needs it",
        }
