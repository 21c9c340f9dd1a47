"""What stays and what goes, in a real store: pins, last uses, files in use, the limit."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from craftcache.daemon.administration import Eviction, KeptModel
from craftcache.errors import NotFound, PolicyDenied
from craftcache.sources import parse
from craftcache.wire import Warm, WarmOptions
from craftcached.eviction.evictor import HANDOVER_SECONDS
from craftcached.in_use import is_in_use
from tests.support.published import keeping, key, source

if TYPE_CHECKING:
    from pathlib import Path

KB = 1000
ALL = 10**12


def bytes_of(character: bytes) -> bytes:
    return character * KB


async def test_the_longest_unused_models_go_until_enough_is_free(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        for name in ("old", "middle", "new"):
            await parts.publish(name, file=bytes_of(name[:1].encode()))
        parts.uses.note(key("old"))  # and is the last used now
        eviction = await parts.evictor.evict(KB + 1, dry_run=False)
        assert eviction == Eviction(
            ("https://example.org/middle", "https://example.org/new"), 2 * KB, 0, ()
        )
        assert await parts.names() == {"old"}


async def test_a_dry_run_says_the_same_and_removes_nothing(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        for name in ("old", "new"):
            await parts.publish(name, file=bytes_of(name[:1].encode()))
        would = await parts.evictor.evict(1, dry_run=True)
        assert await parts.names() == {"old", "new"}
        assert await parts.evictor.evict(1, dry_run=False) == would
        assert await parts.names() == {"new"}


async def test_what_is_pinned_or_open_stays_and_is_named(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        await parts.publish("pinned", file=bytes_of(b"p"))
        loaded = await parts.publish("open", file=bytes_of(b"o"))
        await parts.publish("free", file=bytes_of(b"f"))
        await parts.pins.pin(source("pinned"), lock=False)
        with parts.path(loaded).open("rb"):
            if is_in_use(parts.path(loaded)) is None:
                pytest.skip("leases do not work on this file system")
            eviction = await parts.evictor.evict(ALL, dry_run=False)
        assert eviction.removed == ("https://example.org/free",)
        assert eviction.freed_bytes == KB
        assert eviction.missing_bytes == ALL - KB
        assert set(eviction.kept) == {
            KeptModel("https://example.org/pinned", "pinned"),
            KeptModel("https://example.org/open", "in use"),
        }
        assert await parts.names() == {"pinned", "open"}
        again = await parts.evictor.evict(ALL, dry_run=False)
        assert again.removed == ("https://example.org/open",)


async def test_a_shared_blob_counts_once_and_goes_with_its_last_model(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        codec = bytes_of(b"c")
        first = await parts.publish("first", codec=codec, lm=bytes_of(b"1"))
        second = await parts.publish("second", codec=codec, lm=bytes_of(b"2"))
        shared = parts.path(first)
        assert shared == parts.path(second)
        eviction = await parts.evictor.evict(1, dry_run=False)
        assert (eviction.removed, eviction.freed_bytes) == (("https://example.org/first",), KB)
        assert shared.read_bytes() == codec
        eviction = await parts.evictor.evict(ALL, dry_run=False)
        assert eviction.freed_bytes == 2 * KB
        assert not shared.exists()


async def test_the_limit_is_kept_once_models_have_been_handed_over(tmp_path: Path) -> None:
    async with keeping(tmp_path, max_bytes=2 * KB) as parts:
        for name in ("a", "b", "c"):
            await parts.publish(name, file=bytes_of(name.encode()))
        await parts.evictor.trim()
        assert await parts.names() == {"a", "b", "c"}
        parts.clock.now += HANDOVER_SECONDS
        await parts.evictor.trim()
        assert await parts.names() == {"b", "c"}
        await parts.evictor.trim()
        assert await parts.names() == {"b", "c"}
        over = await parts.evictor.evict(None, dry_run=False)
        assert over == Eviction((), 0, 0, ())


async def test_without_a_limit_nothing_goes_by_itself(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        await parts.publish("a", file=bytes_of(b"a"))
        parts.clock.now += 10**9
        await parts.evictor.trim()
        assert await parts.evictor.evict(None, dry_run=False) == Eviction((), 0, 0, ())
        assert await parts.names() == {"a"}


async def test_a_descriptor_keeps_its_bytes_when_the_model_is_removed(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        manifest = await parts.publish("a", file=bytes_of(b"a"))
        with parts.path(manifest).open("rb") as held:
            await parts.store.remove(key("a"))
            assert not parts.path(manifest).exists()
            assert held.read() == bytes_of(b"a")


async def test_hits_are_written_down_together(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        await parts.publish("a", file=bytes_of(b"a"))
        for _ in range(1000):
            parts.clock.now += 1
            parts.uses.note(key("a"))
        assert await parts.records.uses() == {}
        await parts.uses.save()
        assert await parts.records.uses() == {key("a"): parts.clock.now}
        parts.clock.now += 1
        parts.uses.note(key("a"))
        last = parts.clock.now
    async with keeping(tmp_path) as parts:
        assert parts.uses.last(key("a")) == last
        await parts.evictor.evict(ALL, dry_run=False)
        assert await parts.records.uses() == {}


async def test_pins_outlive_a_restart_and_belong_to_the_source(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        with pytest.raises(NotFound, match="not in the cache"):
            await parts.pins.pin(source("a"), lock=False)
        await parts.publish("a", file=bytes_of(b"a"))
        await parts.pins.pin(source("a"), lock=False)
    async with keeping(tmp_path) as parts:
        await parts.publish("a", file=bytes_of(b"b"))  # a new revision
        with pytest.raises(PolicyDenied, match="craftcache unpin"):
            await parts.pins.check_unpinned(source("a"))
        assert (await parts.evictor.evict(ALL, dry_run=False)).removed == ()
        await parts.pins.unpin(source("a"))
        await parts.pins.check_unpinned(source("a"))
        with pytest.raises(NotFound, match="not pinned"):
            await parts.pins.unpin(source("a"))


async def dropped(parts_path: Path) -> None:
    descriptor = os.open(parts_path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


async def test_locks_follow_the_pin_over_revisions_and_restarts(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        path = parts.path(await parts.publish("a", file=bytes_of(b"a")))
        await dropped(path)
        if await parts.residency.resident([path]) != 0:
            pytest.skip("this file system keeps its files in memory")
        await parts.pins.pin(source("a"), lock=True)
        await dropped(path)
        assert await parts.residency.resident([path]) == KB
        newer = parts.path(await parts.publish("a", file=bytes_of(b"b")))
        await parts.pins.apply_locks()
        await dropped(path)
        await dropped(newer)
        assert await parts.residency.resident([path]) == 0
        assert await parts.residency.resident([newer]) == KB
    await dropped(newer)
    async with keeping(tmp_path) as parts:
        assert await parts.residency.resident([newer]) == 0
        await parts.pins.apply_locks()
        await dropped(newer)
        assert await parts.residency.resident([newer]) == KB
        await parts.pins.pin(source("a"), lock=False)  # still pinned, no longer locked
        await dropped(newer)
        assert await parts.residency.resident([newer]) == 0
        assert parts.pins.find(key("a")) is not None


async def test_a_queued_warm_keeps_whether_it_is_resident(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        for resident in (True, False, True):
            options = WarmOptions(("a",), resident=resident)
            await parts.records.add_warm_job(Warm(parse("org/model"), options))
    async with keeping(tmp_path) as parts:
        jobs = await parts.records.warm_jobs()
        assert [job.warm.options.resident for job in jobs] == [True, False]
        assert {job.warm.options.filenames for job in jobs} == {("a",)}


async def test_what_a_watch_serves_stays_and_its_other_generations_go(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        for name, content in (("watch:run", b"3"), ("watch:run@2", b"2")):
            manifest = await parts.publish("state", file=bytes_of(content))
            watched = replace(manifest, source=name)
            parts.store.cache.write_manifest(parse(name), watched)
        await parts.store.remove(key("state"))
        eviction = await parts.evictor.evict(ALL, dry_run=False)
        assert eviction.removed == ("watch:run@2",)
        assert eviction.kept == (KeptModel("watch:run", "served by a watch"),)


async def test_a_blob_that_a_new_revision_left_behind_is_swept(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        older = parts.path(await parts.publish("a", file=bytes_of(b"1")))
        newer = parts.path(await parts.publish("a", file=bytes_of(b"2")))
        linked = older.stat().st_ctime
        assert await parts.store.sweep(before=linked) == 0
        assert older.exists()  # it may be about to be published
        foreign = parts.store.cache.manifest_path("0" * 64)
        foreign.write_text('{"version": 99}')  # and may name it
        assert await parts.store.sweep(before=linked + 1000) == 0
        foreign.unlink()
        stamps = parts.store.cache.stamps.path(older.name).stat().st_size
        assert await parts.store.sweep(before=linked + 1000) == KB
        assert not older.exists()
        assert newer.read_bytes() == bytes_of(b"2")
        assert await parts.store.sweep(before=linked + 1000) == 0
        derived_before = linked + 1000
        swept = await parts.store.sweep(before=linked + 1000, derived_before=derived_before)
        assert swept == stamps
