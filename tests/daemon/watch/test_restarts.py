"""Watches across a restart of the daemon: what is kept, what is taken up again."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from craftcache.errors import NotFound
from craftcache.sources import WatchSource
from tests.support.watching import content, rule, watching, write_pair

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_rollback_holds_until_it_is_resumed_also_across_a_restart(base: Path) -> None:
    export = base / "export"
    async with watching(base, rule(export)) as rig:
        for value in (1, 2):
            write_pair(export, value)
            await rig.until_served("run", value)
        await rig.watches.roll_back("run", None)
        assert rig.number("run") == 1
        write_pair(export, 3)
        await rig.until_state("run", "settling")
        report = await rig.until_state("run", "ready")
        assert (rig.number("run"), report.numbers, report.is_held) == (1, (1, 2, 3), True)
    async with watching(base, rule(export)) as rig:
        await rig.until_state("run", "ready")
        assert rig.number("run") == 1
        await rig.watches.roll_back("run", 2)
        assert rig.number("run") == 2
        await rig.watches.resume("run")
        assert rig.number("run") == 3
        with pytest.raises(NotFound, match="no generation 9"):
            await rig.watches.roll_back("run", 9)


async def test_a_restart_copies_nothing_that_is_served_already(base: Path) -> None:
    write_pair(base / "export", 1)
    async with watching(base, rule(base / "export")) as rig:
        before = await rig.until_served("run", 1)
    async with watching(base, rule(base / "export")) as rig:
        report = await rig.until_state("run", "ready")
        assert report.served == before
        assert rig.states() == ["ready"]


async def test_what_a_kill_left_unserved_is_served_at_the_next_start(base: Path) -> None:
    """The generation was published, and the daemon died before it became what is served."""
    write_pair(base / "export", 1)
    async with watching(base, rule(base / "export")) as rig:
        await rig.until_served("run", 1)
        write_pair(base / "export", 2)
        await rig.until_served("run", 2)
        first = rig.store.manifest(WatchSource("run", 1))
        assert first is not None
        await rig.store.publisher.serve_generation("run", first)
    async with watching(base, rule(base / "export")) as rig:
        await rig.until_served("run", 2)


async def test_without_the_records_a_watch_goes_on_with_its_next_number(base: Path) -> None:
    export = base / "export"
    write_pair(export, 1)
    async with watching(base) as rig:
        await rig.watches.put(rule(export))
        await rig.until_served("run", 1)
    shutil.rmtree(base / "state")
    async with watching(base) as rig:
        assert rig.watches.reports() == []
        assert rig.store.manifest(WatchSource("run")) is not None
        await rig.watches.put(rule(export))
        write_pair(export, 2)
        await rig.until_served("run", 2)


async def test_an_added_watch_survives_a_restart_and_goes_with_all_it_has(base: Path) -> None:
    write_pair(base / "export", 1)
    async with watching(base) as rig:
        await rig.watches.put(rule(base / "export"))
        await rig.until_served("run", 1)
    async with watching(base) as rig:
        await rig.until_state("run", "ready")
        freed = await rig.watches.remove("run")
        assert freed == len(content("lm", 1)) + len(content("compression", 1))
        assert await rig.store.manifests() == []
        with pytest.raises(NotFound):
            rig.watches.report("run")
