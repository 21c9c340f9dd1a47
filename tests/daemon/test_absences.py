"""Why a model is not warm, from what has happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from craftcached.absences import Absences
from craftcached.database import Database
from tests.support.refusing import refusing

if TYPE_CHECKING:
    from pathlib import Path


def event(kind: str, source: str, **fields: Any) -> dict[str, Any]:
    return {"seq": 1, "event": kind, "at": 5.0, "source": source} | fields


def failed(source: str, code: str = "NotFound", hint: str | None = None) -> dict[str, Any]:
    return event("warm_failed", source, code=code, message="why", hint=hint, retryable=False)


def test_each_way_of_not_being_warm_has_its_reason_and_what_to_do() -> None:
    absences = Absences()
    absences.hear(failed("org/a", hint="spell it right"))
    absences.hear(event("warm_cancelled", "org/b"))
    evicted = {"reason": "max_bytes", "freed_bytes": 1}
    absences.hear(event("evicted", "org/c", superseded=False, **evicted))
    absences.hear(event("evicted", "org/c@past", superseded=True, **evicted))
    absences.hear(event("removed", "org/d", freed_bytes=1))
    told = {each.source: (each.code, each.hint) for each in absences.newest()}
    assert list(told) == ["org/d", "org/c", "org/b", "org/a"]
    assert told["org/a"] == ("NotFound", "spell it right")
    assert [told[source][0] for source in told] == ["Removed", "Evicted", "Cancelled", "NotFound"]
    assert all(hint for _, hint in told.values())
    assert all(each.at == 5.0 for each in absences.newest())


def test_what_is_warm_again_is_forgotten_and_what_fails_again_is_told_once() -> None:
    absences = Absences()
    absences.hear(failed("org/a"))
    absences.hear(failed("org/b"))
    absences.hear(failed("org/a", code="Unavailable"))
    assert [(each.source, each.code) for each in absences.newest()] == [
        ("org/a", "Unavailable"),
        ("org/b", "NotFound"),
    ]
    absences.hear(event("warmed", "org/a"))
    absences.hear(event("published", "org/b", by_name=True))
    assert len(absences) == 0


def test_what_others_have_published_since_it_failed_is_refreshed() -> None:
    absences = Absences()
    absences.hear(failed("org/since"))
    absences.hear(failed("org/before"))
    absences.looked({"org/since": 6.0, "org/before": 4.0})
    assert [each.source for each in absences.newest()] == ["org/before"]


async def test_a_restart_forgets_none(tmp_path: Path) -> None:
    absences = Absences()
    async with Database(tmp_path) as records, absences.kept_in(records):
        absences.hear(failed("org/a", hint="spell it right"))
        absences.hear(failed("org/b"))
        absences.hear(event("warmed", "org/b"))
        absences.hear(event("removed", "org/c", freed_bytes=1))
    later = Absences()
    async with Database(tmp_path) as records, later.kept_in(records):
        assert later.newest() == absences.newest()
        later.hear(event("published", "org/a", by_name=True))
    last = Absences()
    async with Database(tmp_path) as records, last.kept_in(records):
        assert [each.source for each in last.newest()] == ["org/c"]


def test_no_more_are_remembered_than_may_be() -> None:
    absences = Absences(kept=3)
    for number in range(10):
        absences.hear(failed(f"org/{number}"))
    assert [each.source for each in absences.newest()] == ["org/9", "org/8", "org/7"]


async def test_what_is_forgotten_for_newer_ones_is_not_there_after_a_restart(
    tmp_path: Path,
) -> None:
    absences = Absences(kept=3)
    async with Database(tmp_path) as records:
        for name in "ab":
            async with absences.kept_in(records):
                for number in range(4):
                    absences.hear(failed(f"org/{name}{number}"))
        async with absences.kept_in(records):
            assert [each.source for each in absences.newest()] == ["org/b3", "org/b2", "org/b1"]


async def test_only_what_was_written_is_taken_as_recorded(tmp_path: Path) -> None:
    absences = Absences()
    async with Database(tmp_path) as records, absences.kept_in(records):
        absences.hear(failed("org/a"))
        with refusing(tmp_path, "INSERT ON absences"):
            assert not await absences.save(records)
        assert await records.absences() == []
        assert await absences.save(records)
        assert [each.source for _, each in await records.absences()] == ["org/a"]
