"""Which models are in the cache, and which are lost: said only of what other hands removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from craftcached.database import Database
from craftcached.models_here import ModelsHere
from craftcached.observability import Observability
from tests.support.refusing import refusing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def published(source: str, *, by_name: bool = True) -> dict[str, Any]:
    return {"seq": 1, "event": "published", "at": 5.0, "source": source, "by_name": by_name}


def removed(source: str) -> dict[str, Any]:
    return {"seq": 1, "event": "removed", "at": 5.0, "source": source, "freed_bytes": 1}


def look(models: ModelsHere, present: Iterable[str]) -> set[str]:
    """What is lost after a look that finds these models, and on the disk no others."""
    vanished = models.vanished(present)
    models.looked(present, vanished=vanished, lost=vanished)
    assert {each.source for each in models.lost()} == set(models.lost_sources())
    assert {each.code for each in models.lost()} <= {"Lost"}
    return set(models.lost_sources())


def test_what_is_gone_without_a_removal_is_lost(tmp_path: Path) -> None:
    models = ModelsHere(tmp_path)
    assert look(models, ["org/lost", "org/removed", "org/there"]) == set()
    models.hear(removed("org/removed"))
    assert models.vanished(["org/there"]) == {"org/lost"}
    assert look(models, ["org/there"]) == {"org/lost"}
    assert models.vanished(["org/there"]) == frozenset()
    assert look(models, ["org/there"]) == {"org/lost"}


def test_what_is_removed_during_a_look_is_not_lost(tmp_path: Path) -> None:
    models = ModelsHere(tmp_path)
    look(models, ["org/a"])
    vanished = models.vanished([])
    models.hear(removed("org/a"))
    models.looked([], vanished=vanished, lost=vanished)
    assert models.lost() == []


def test_a_model_that_is_there_for_another_reason_is_neither_missed_nor_lost(
    tmp_path: Path,
) -> None:
    models = ModelsHere(tmp_path)
    look(models, ["org/a"])
    models.looked([], vanished=models.vanished([]), lost=())
    assert models.lost() == []
    assert models.vanished([]) == frozenset()


def test_what_is_seen_again_or_comes_again_is_lost_no_more(tmp_path: Path) -> None:
    """However old its publication: a file system that is mounted again changes no file."""
    observability = Observability.of(tmp_path)
    models = observability.models_here
    everything = {"org/mounted", "org/fetched", "org/unwanted"}
    look(models, everything)
    assert look(models, []) == everything
    assert observability.not_warm_count() == len(observability.not_warm()) == 3
    observability.events.tell("published", source="org/fetched", size=1, by_name=True)
    assert observability.forget("org/unwanted")
    assert not observability.forget("org/unwanted")
    assert look(models, ["org/fetched", "org/mounted"]) == set()
    assert observability.not_warm_count() == len(observability.not_warm()) == 0
    assert models.vanished([]) == {"org/fetched", "org/mounted"}


def test_what_has_another_reason_too_is_told_of_once(tmp_path: Path) -> None:
    observability = Observability.of(tmp_path)
    look(observability.models_here, ["org/a", "org/b"])
    look(observability.models_here, [])
    observability.events.tell(
        "warm_failed", source="org/a", code="Offline", message="why", hint=None, seconds=1.0
    )
    told = {each.source: each.code for each in observability.not_warm()}
    assert told == {"org/a": "Offline", "org/b": "Lost"}
    assert observability.not_warm_count() == 2


def test_no_more_lost_models_are_remembered_than_may_be(tmp_path: Path) -> None:
    models = ModelsHere(tmp_path, lost_kept=3)
    look(models, [f"org/{number}" for number in range(10)])
    assert len(look(models, [])) == 3


async def test_what_is_here_and_what_is_lost_is_known_after_a_restart(tmp_path: Path) -> None:
    models = ModelsHere(tmp_path)
    async with Database(tmp_path) as records, models.kept_in(records):
        for source in ("org/stays", "org/removed", "org/lost"):
            models.hear(published(source))
        models.hear(published("t5-base", by_name=False))
        models.hear(removed("org/removed"))
    for _ in range(2):
        later = ModelsHere(tmp_path)
        async with Database(tmp_path) as records, later.kept_in(records):
            assert look(later, ["org/stays"]) == {"org/lost"}
            told = later.lost()
    last = ModelsHere(tmp_path)
    async with Database(tmp_path) as records, last.kept_in(records):
        assert last.lost() == told
        assert last.vanished([]) == {"org/stays"}


async def test_of_another_cache_directory_nothing_is_said(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for root, present in ((one, ["org/a", "org/b"]), (one, ["org/a"])):
        models = ModelsHere(root)
        async with Database(tmp_path) as records, models.kept_in(records):
            lost = look(models, present)
    assert lost == {"org/b"}
    for root in (other, one):
        models = ModelsHere(root)
        async with Database(tmp_path) as records, models.kept_in(records):
            assert look(models, []) == set()


async def test_only_what_was_written_is_taken_as_recorded(tmp_path: Path) -> None:
    """Or a model that was removed on request would be called lost at the next start."""
    models = ModelsHere(tmp_path)
    async with Database(tmp_path) as records, models.kept_in(records):
        look(models, ["org/a"])
        assert await models.save(records)
        models.hear(removed("org/a"))
        with refusing(tmp_path, "DELETE ON models_here"):
            assert not await models.save(records)
        assert await records.models_here(tmp_path) == {"org/a": None}
    later = ModelsHere(tmp_path)
    async with Database(tmp_path) as records, later.kept_in(records):
        assert look(later, []) == set()
