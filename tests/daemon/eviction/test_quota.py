"""Whether more bytes may come, for any cache: the quota, the disk, and what goes for them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from craftcached.eviction.policy import Blob, Plan, used_bytes
from craftcached.eviction.policy import EvictionCandidate as Candidate
from craftcached.eviction.quota import RoomDecision, RoomLimits, RoomUsage, admit, excess

SIZES = st.integers(0, 100)


@st.composite
def caches(draw: st.DrawFn) -> list[Candidate]:
    """Models that share some blobs, depend on each other, and are protected in all ways."""
    count = draw(st.integers(0, 6))
    blobs = [Blob(1, n, draw(SIZES), draw(st.booleans())) for n in range(draw(st.integers(0, 6)))]
    held = st.frozensets(st.sampled_from(blobs)) if blobs else st.just(frozenset[Blob]())
    keys = [str(number) for number in range(count)]
    return [
        Candidate(
            key=key,
            source=f"org/{key}",
            blobs=draw(held),
            last_use=draw(st.integers(0, 5)),
            is_kept=draw(st.booleans()),
            needs=draw(st.frozensets(st.sampled_from(keys))) - {key},
            is_needed_only=draw(st.booleans()),
            is_superseded=draw(st.booleans()),
        )
        for key in keys
    ]


@st.composite
def rooms(draw: st.DrawFn) -> tuple[list[Candidate], RoomUsage, RoomLimits, int]:
    """A cache, its room, and bytes that are to come."""
    models = draw(caches())
    claimed = draw(SIZES)
    usage = RoomUsage(
        used=used_bytes(models) + draw(SIZES),
        claimed=claimed,
        lacking=draw(st.integers(0, claimed)),
        free=draw(st.integers(0, 800)),
    )
    limits = RoomLimits(draw(st.integers(0, 700)), draw(st.integers(0, 200)))
    return models, usage, limits, draw(st.integers(0, 200))


def after(usage: RoomUsage, plan: Plan) -> RoomUsage:
    return replace(usage, used=usage.used - plan.freed, free=usage.free + plan.freed)


@given(rooms())
def test_what_is_admitted_exceeds_no_limit(
    room: tuple[list[Candidate], RoomUsage, RoomLimits, int],
) -> None:
    models, usage, limits, wanted = room
    admission = admit(models, usage, limits, wanted)
    if admission.missing or not wanted:
        return
    then = after(usage, admission.plan)
    assert limits.max_bytes == 0 or then.used + then.claimed + wanted <= limits.max_bytes
    assert then.free - then.lacking - wanted >= limits.min_free


@given(rooms())
def test_what_is_refused_takes_nothing_away_and_says_how_much_is_missing(
    room: tuple[list[Candidate], RoomUsage, RoomLimits, int],
) -> None:
    models, usage, limits, wanted = room
    admission = admit(models, usage, limits, wanted)
    if not admission.missing:
        return
    assert admission.plan == Plan((), 0)
    # With so much less to come, or so much more room, it is admitted: the number is exact.
    eased = replace(usage, free=usage.free + admission.missing)
    wider = replace(limits, max_bytes=limits.max_bytes and limits.max_bytes + admission.missing)
    assert not admit(models, eased, wider, wanted).missing
    scarce = replace(eased, free=eased.free - 1)
    narrow = replace(wider, max_bytes=wider.max_bytes and max(1, wider.max_bytes - 1))
    assert admit(models, scarce, narrow, wanted).missing


@given(rooms())
def test_no_model_goes_in_vain(room: tuple[list[Candidate], RoomUsage, RoomLimits, int]) -> None:
    """Were any one of them spared, with what it needs, the rest would not free enough."""
    models, usage, limits, wanted = room
    plan = admit(models, usage, limits, wanted).plan
    need = excess(usage, limits, wanted)
    going = {model.key: model for model in plan.victims}
    for model in plan.victims:
        if model.is_needed_only and any(model.key in other.needs for other in plan.victims):
            continue  # goes because nobody is left who needs it
        if model.is_superseded and not all(other.is_superseded for other in plan.victims):
            continue  # goes before any that is current
        spared = closure(model, going)
        left = [other for other in models if other.key in spared or other.key not in going]
        freed = frozenset().union(*(m.blobs for m in models)) - frozenset().union(
            *(m.blobs for m in left)
        )
        assert sum(blob.size for blob in freed) < need


def closure(model: Candidate, among: dict[str, Candidate]) -> set[str]:
    found: set[str] = set()
    waiting = [model.key]
    while waiting:
        key = waiting.pop()
        if key in among and key not in found:
            found.add(key)
            waiting += among[key].needs
    return found


@given(rooms())
def test_what_is_protected_stays_with_what_it_needs(
    room: tuple[list[Candidate], RoomUsage, RoomLimits, int],
) -> None:
    models, usage, limits, wanted = room
    plan = admit(models, usage, limits, wanted).plan
    going = {model.key for model in plan.victims}
    staying = [model for model in models if model.key not in going]
    assert not any(model.is_kept for model in plan.victims)
    circular = {model.key for model in models if model.key in reachable(model, models)}
    for model in staying:
        assert not (model.needs & going) - circular


def reachable(model: Candidate, models: list[Candidate]) -> set[str]:
    by_key = {each.key: each for each in models}
    found: set[str] = set()
    waiting = list(model.needs)
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting += by_key[key].needs
    return found


@given(rooms())
def test_what_fits_or_is_nothing_removes_nothing(
    room: tuple[list[Candidate], RoomUsage, RoomLimits, int],
) -> None:
    models, usage, limits, wanted = room
    if excess(usage, limits, wanted) == 0 or wanted == 0:
        assert admit(models, usage, limits, wanted) == RoomDecision(Plan((), 0))


@given(rooms())
def test_what_can_never_fit_is_told_from_what_may_later(
    room: tuple[list[Candidate], RoomUsage, RoomLimits, int],
) -> None:
    models, usage, limits, wanted = room
    admission = admit(models, usage, limits, wanted)
    if not admission.missing:
        assert admission.missing_ever == 0
    if 0 < limits.max_bytes < wanted:
        assert admission.missing_ever >= wanted - limits.max_bytes


def test_superseded_revisions_go_before_what_was_not_used_for_longer() -> None:
    old = Candidate("old", "org/old", frozenset({Blob(1, 1, 10, in_use=False)}), last_use=0)
    past = replace(
        old,
        key="past",
        blobs=frozenset({Blob(1, 2, 10, in_use=False)}),
        last_use=9,
        is_superseded=True,
    )
    usage = RoomUsage(used=20, free=100)
    assert admit([old, past], usage, RoomLimits(20), 5).plan == Plan((past,), 10)
    assert admit([old, past], usage, RoomLimits(20), 15).plan == Plan((past, old), 20)


def test_five_models_of_two_gigabytes_and_one_of_fourteen_in_twelve() -> None:
    models = [
        Candidate(str(n), f"org/{n}", frozenset({Blob(1, n, 2, in_use=False)}), last_use=n)
        for n in range(5)
    ]
    usage, limits = RoomUsage(used=10, free=1000), RoomLimits(12)
    refused = admit(models, usage, limits, 14)
    assert (refused.plan.victims, refused.missing, refused.missing_ever) == ((), 2, 2)
    assert admit(models, usage, limits, 2).plan.victims == ()
    assert admit(models, usage, limits, 3).plan.victims == (models[0],)
    # One that came past the admission, as another tool may bring it, is the one that goes.
    large = Candidate("large", "org/large", frozenset({Blob(1, 9, 14, in_use=False)}), last_use=9)
    usage = RoomUsage(used=24, free=1000)
    assert admit([*models, large], usage, limits, 1).plan.victims == (large,)


@given(rooms(), st.integers(0, 200))
def test_who_keeps_for_long_is_counted_in_what_can_never_fit(
    room: tuple[list[Candidate], RoomUsage, RoomLimits, int], more: int
) -> None:
    models, usage, limits, wanted = room
    pinned = frozenset(model.key for model in models if model.is_kept)
    for_ever = admit(models, usage, limits, wanted + more, kept_for_long=pinned)
    for_now = admit(models, usage, limits, wanted + more)
    assert for_now.missing_ever <= for_ever.missing_ever
