"""Room before bytes, in a real store: what is refused, what goes, and what is counted."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.publish import Verified, publish_hub
from craftcache.cache.underway import note_underway
from craftcache.digests import Digest, Promise, hash_stamped
from craftcache.errors import NotFound, PolicyDenied, StorageFull
from craftcache.sources import HubSource, parse
from craftcached.database import Pin
from craftcached.eviction.meter import RoomMeter
from craftcached.eviction.survey import GRACE_SECONDS
from craftcached.min_free import MinFree
from tests.support.published import DAY, Clock, keeping, key, source

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.published import Keeping

KB = 1000


def content(name: str, size: int = KB) -> bytes:
    return name.encode()[:1] * size


async def fill(parts: Keeping, *names: str, size: int = KB) -> None:
    for name in names:
        await parts.publish(name, file=content(name, size))


def publish_on_the_hub(parts: Keeping, repo_id: str, data: bytes) -> None:
    """Publish a model in huggingface_hub's layout, where other tools put theirs too."""
    hub_source, cache = parse(repo_id), parts.store.cache
    assert isinstance(hub_source, HubSource)
    staged = cache.staging / "file"
    staged.write_bytes(data)
    verified = Verified(hash_stamped(staged), None, 0, 0)
    promise = Promise(len(data), Digest("sha256", verified.digests.sha256))
    files = {"file": (verified, promise)}
    publish_hub(cache, hub_source, "a" * 40, files, "https://hub/resolve", is_named=True)
    cache.discard(verified.file)


async def test_one_that_can_never_fit_is_refused_with_the_numbers_and_nothing_goes(
    tmp_path: Path,
) -> None:
    """Five models of 2, a limit of 12 and one of 14, which used to empty the cache."""
    async with keeping(tmp_path, max_bytes=12 * KB) as parts:
        await fill(parts, "a", "b", "c", "d", "e", size=2 * KB)
        with pytest.raises(StorageFull) as refused:
            await parts.space.reserve("large", 14 * KB, source="org/large")
        error = refused.value
        assert error.missing_bytes == 2 * KB
        assert not error.retryable
        assert "14.0 kB more do not fit" in error.message
        assert "max_bytes, which is 12.0 kB" in error.message
        assert error.hint
        assert await parts.names() == {"a", "b", "c", "d", "e"}
        await parts.space.reserve("fits", 2 * KB, source="org/fits")
        assert await parts.names() == {"a", "b", "c", "d", "e"}
        await parts.space.reserve("more", 3 * KB, source="org/more")
        assert await parts.names() == {"c", "d", "e"}


async def test_room_is_promised_once_and_makes_no_more_go_than_it_takes(tmp_path: Path) -> None:
    async with keeping(tmp_path, max_bytes=4 * KB) as parts:
        await fill(parts, "a", "b")
        async with parts.space.claiming({"one": (KB, 0), "two": (KB, 0)}, source="org/m"):
            assert parts.space.claimed == 2 * KB
            # Each download takes over what was claimed for it.
            await parts.space.reserve("one", KB, source="org/m")
            await parts.space.reserve("two", KB, source="org/m")
            assert await parts.names() == {"a", "b"}
            # Another model shares one of the files, and adds another.
            async with parts.space.claiming({"two": (KB, 0), "three": (KB, 0)}, source="org/n"):
                assert await parts.names() == {"b"}
                parts.space.written("two", KB)
                parts.space.release("two")
                assert parts.space.claimed == 3 * KB
            assert parts.space.claimed == 2 * KB
            parts.space.release("one")
        assert parts.space.claimed == parts.space.lacking == 0


async def test_two_at_once_are_not_given_the_same_bytes(tmp_path: Path) -> None:
    async with keeping(tmp_path, max_bytes=3 * KB) as parts:
        await fill(parts, "a", "b")
        outcomes = await asyncio.gather(
            *(parts.space.reserve(name, 2 * KB, source=name) for name in ("x", "y")),
            return_exceptions=True,
        )
        [refused] = [each for each in outcomes if each is not None]
        assert isinstance(refused, StorageFull)
        assert refused.retryable  # once the other is published, it can go
        assert refused.retry_after
        assert await parts.names() == {"b"}


async def test_what_is_pinned_held_needed_by_a_request_or_open_stays(tmp_path: Path) -> None:
    async with keeping(tmp_path, max_bytes=5 * KB) as parts:
        await fill(parts, "pinned", "held", "needed", "free")
        opened = await parts.publish("open", file=content("o"))
        await parts.pins.pin(source("pinned"), lock=False)
        await parts.holds.hold(source("held"), 1000, 3600)
        with parts.path(opened).open("rb"), parts.surveyor.needing(key("needed")):
            with pytest.raises(StorageFull) as refused:
                await parts.space.reserve("x", 2 * KB, source="x")
            assert refused.value.missing_bytes == KB
            assert refused.value.retryable
            for reason in ("pinned", "held", "a request needs it", "in use"):
                assert f"({reason})" in str(refused.value.hint)
            assert await parts.names() == {"pinned", "held", "needed", "free", "open"}
            await parts.space.reserve("x", KB, source="x")
            assert await parts.names() == {"pinned", "held", "needed", "open"}
        parts.space.release("x")
        await parts.space.reserve("x", 3 * KB, source="x")
        assert await parts.names() == {"pinned", "held"}
        with pytest.raises(StorageFull) as refused:
            await parts.space.reserve("y", 2 * KB, source="y")
        assert refused.value.retryable  # the hold ends
        with pytest.raises(StorageFull) as refused:
            await parts.space.reserve("y", 5 * KB, source="y")
        assert not refused.value.retryable  # the pin does not


async def test_the_disk_keeps_its_free_part(tmp_path: Path) -> None:
    blobs = tmp_path / "cache" / ".craftcache" / "blobs" / "sha256"

    def free() -> int:
        return 12 * KB - sum(blob.stat().st_size for blob in blobs.iterdir())

    async with keeping(tmp_path, free=free) as parts:
        parts.evictor.min_free = MinFree.parse(str(4 * KB))
        await fill(parts, "a", "b")
        await parts.space.reserve("x", 6 * KB, source="x")
        assert await parts.names() == {"a", "b"}
        with pytest.raises(StorageFull, match=r"min_free keeps 4\.0 kB"):
            await parts.space.reserve("y", 3 * KB, source="y")
        await parts.space.reserve("y", KB, source="y")
        assert await parts.names() == {"b"}


@pytest.mark.parametrize(
    ("text", "total", "size"),
    [("15%", 1000, 150), ("0", 1000, 0), ("0.5 %", 1000, 5), ("123", 1000, 123), ("100%", 7, 7)],
)
def test_the_free_part_is_a_percentage_or_bytes(text: str, total: int, size: int) -> None:
    assert MinFree.parse(text).of(total) == size


@pytest.mark.parametrize("text", ["", "%", "101%", "-1", "15 percent", "1e3", "nan"])
def test_other_free_parts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="15%"):
        MinFree.parse(text)


async def test_what_lies_in_our_own_directories_counts_too(tmp_path: Path) -> None:
    async with keeping(tmp_path, max_bytes=20 * KB) as parts:
        await fill(parts, "a")
        cache = parts.store.cache
        cache.quarantine.mkdir()
        (cache.quarantine / "wrong").write_bytes(bytes(2 * KB))
        (cache.staging / "fetch").mkdir()
        (cache.staging / "fetch" / "abandoned.part").write_bytes(b"x" * 8192)
        cache.index_path("0" * 64).write_bytes(bytes(KB))
        others = cache.root / "models--org--other" / "blobs"
        others.mkdir(parents=True)
        (others / "0123").write_bytes(bytes(3 * KB))
        report = await parts.evictor.report()
        assert report.used == KB + 8192  # no index, and the quarantine has limits of its own
        assert report.others == 3 * KB
        assert report.superseded == report.claimed == 0
        # What is being fetched counts as claimed, in the size that it will have, and not twice.
        await parts.space.reserve("abandoned", 100, source="x", present=8192)
        report = await parts.evictor.report()
        assert (report.used, report.claimed) == (KB, 8292)


async def test_a_superseded_revision_counts_and_goes_first(tmp_path: Path) -> None:
    async with keeping(tmp_path, max_bytes=4 * KB) as parts:
        await fill(parts, "old")
        past = await parts.publish("model", file=content("1"))
        now = await parts.publish("model", file=content("2"))
        note_underway(parts.store.cache, key("model"), past)
        assert (await parts.evictor.report()).superseded == KB
        # One that is current again is no past one.
        note_underway(parts.store.cache, key("model"), replace(now))
        assert (await parts.evictor.report()).superseded == KB
        await parts.space.reserve("x", 2 * KB, source="x")
        assert await parts.names() == {"old", "model"}
        assert parts.path(now).exists()
        assert not parts.path(past).exists()
        assert (await parts.evictor.report()).superseded == 0


async def test_what_is_being_published_stays_until_it_is_surely_left(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        coming = await parts.publish("model", file=content("1"))
        note_underway(parts.store.cache, key("model"), coming)
        parts.store.cache.manifest_path(key("model")).unlink()  # it is about to be written
        parts.clock.now = coming.published_at.timestamp() + 1
        await parts.uses.forget(key("model"))
        kept = await parts.evictor.evict(KB, dry_run=False)
        assert (kept.removed, kept.missing_bytes) == ((), KB)
        assert parts.path(coming).exists()
        parts.clock.now += GRACE_SECONDS
        left = await parts.evictor.evict(KB, dry_run=False)
        assert left.freed_bytes == KB
        assert not parts.path(coming).exists()


async def test_a_pin_and_a_hold_end_by_themselves_and_outlive_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    async with keeping(tmp_path, clock=clock) as parts:
        await fill(parts, "pinned", "held", "twice")
        await parts.pins.pin(source("pinned"), lock=False, expires_in=100)
        await parts.holds.hold(source("held"), 1000, 100)
        await parts.holds.hold(source("twice"), 1000, 50)
        await parts.holds.hold(source("twice"), 1001, 200)
        await parts.holds.hold(source("twice"), 1001, 10)  # the longer one of a user stays
        with pytest.raises(PolicyDenied, match="at most 86400 s"):
            await parts.holds.hold(source("held"), 1000, DAY + 1)
    clock.now += 99
    async with keeping(tmp_path, clock=clock) as parts:
        assert (await parts.evictor.evict(10**6, dry_run=False)).removed == ()
        assert parts.holds.until(key("twice")) == clock.now + 101
        clock.now += 1
        with pytest.raises(NotFound):
            await parts.pins.unpin(source("pinned"))
        await parts.pins.check_unpinned(source("pinned"))
        await parts.pins.apply_locks()
        await parts.holds.drop_expired()
        assert [hold.uid for hold in await parts.records.holds()] == [1001]
        assert await parts.records.pins() == []
        removed = (await parts.evictor.evict(10**6, dry_run=False)).removed
        assert {name.rpartition("/")[2] for name in removed} == {"pinned", "held"}
        await parts.pins.pin(source("twice"), lock=False, expires_in=5)
        await parts.pins.pin(source("twice"), lock=False)  # for ever from now on
        clock.now += 1000
        assert parts.pins.find(key("twice")) is not None
        assert parts.pins.keys == {key("twice")}


async def test_a_database_of_the_release_before_is_taken_over(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "state").mkdir()
    with sqlite3.connect(tmp_path / "state" / "craftcached.sqlite") as earlier:
        earlier.executescript(
            "CREATE TABLE pins (key TEXT PRIMARY KEY, source TEXT NOT NULL, "
            "is_locked INTEGER NOT NULL, pinned_at REAL NOT NULL);"
            "CREATE TABLE queued_warms (id INTEGER PRIMARY KEY, source TEXT NOT NULL, "
            "options TEXT NOT NULL, UNIQUE (source, options));"
            "INSERT INTO pins VALUES ('k', 'org/m', 0, 1.0);"
            "INSERT INTO queued_warms VALUES (7, 'org/m', '{\"filenames\": []}');"
        )
    earlier.close()
    for _ in range(2):
        async with keeping(tmp_path) as parts:
            assert await parts.records.pins() == [Pin("k", "org/m", False, 1.0)]
            [job] = await parts.records.warm_jobs()
            assert (job.id, job.uid, job.warm.options.hold) == (7, None, 0.0)


async def test_what_others_put_there_is_evicted_by_setting_alone(tmp_path: Path) -> None:
    tree = tmp_path / "cache" / "models--org--theirs"
    commit = "1" * 40

    def free() -> int:
        return 7 * KB - sum(blob.stat().st_size for blob in tree.glob("blobs/*"))

    def make() -> None:
        (tree / "refs").mkdir(parents=True)
        (tree / "refs" / "main").write_text(commit)
        (tree / "snapshots" / commit).mkdir(parents=True)
        (tree / "blobs").mkdir()
        (tree / "blobs" / "theirs").write_bytes(bytes(5 * KB))
        (tree / "snapshots" / commit / "weights.bin").symlink_to("../../blobs/theirs")

    await asyncio.to_thread(make)
    async with keeping(tmp_path, free=free) as parts:
        with pytest.raises(StorageFull):
            await parts.space.reserve("x", 3 * KB, source="x")
        assert (tree / "blobs" / "theirs").exists()
        parts.evictor.evicts_others = True
        if not os.access(tree, os.W_OK):
            pytest.skip("not ours to remove")
        await parts.space.reserve("x", 3 * KB, source="x")
        assert not (tree / "blobs" / "theirs").exists()


async def test_the_estimate_between_surveys_never_falls_short(tmp_path: Path) -> None:
    async with keeping(tmp_path, max_bytes=3 * KB) as parts:
        for name in ("a", "b", "c", "d", "e"):
            await parts.space.reserve(name, KB, source=name)
            assert (await parts.evictor.report()).used <= 2 * KB
            parts.space.written(name, KB)
            await fill(parts, name)
            parts.space.release(name)
        assert await parts.names() == {"c", "d", "e"}


async def test_what_is_published_during_a_survey_is_in_the_estimate_after_it(
    tmp_path: Path,
) -> None:
    async with keeping(tmp_path, max_bytes=3 * KB) as parts:
        meter = RoomMeter(parts.store.cache, parts.space)
        since = meter.ended_bytes
        models = await parts.surveyor.survey()
        await parts.space.reserve("a", KB, source="org/a")
        parts.space.written("a", KB)
        publish_on_the_hub(parts, "org/a", content("a"))
        parts.space.release("a")
        await meter.measure(models, since=since)
        usage = await meter.estimate()
        assert usage is not None
        assert usage.used + usage.claimed == KB


async def test_a_claim_that_ends_while_the_file_system_is_asked_stays_in_the_estimate(
    tmp_path: Path,
) -> None:
    loop, asked, may_answer = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def free() -> int:
        loop.call_soon_threadsafe(asked.set)
        assert may_answer.wait(timeout=60)
        return 1 << 40

    may_answer.set()
    async with keeping(tmp_path, max_bytes=3 * KB, free=free) as parts:
        meter, space = RoomMeter(parts.store.cache, parts.space), parts.space
        await space.reserve("a", KB, source="org/a")
        space.written("a", KB // 2)
        since = meter.ended_bytes
        await meter.measure(await parts.surveyor.survey(), since=since)
        may_answer.clear()
        asked.clear()
        estimating = asyncio.create_task(meter.estimate())
        await asked.wait()
        space.written("a", KB // 2)
        space.release("a")
        may_answer.set()
        usage = await estimating
        assert usage is not None
        assert (usage.used + usage.claimed, usage.lacking) == (KB, KB // 2)


async def test_a_file_that_two_models_wait_for_counts_once_when_it_is_published(
    tmp_path: Path,
) -> None:
    async with keeping(tmp_path, max_bytes=3 * KB) as parts:
        space = parts.space
        async with (
            space.claiming({"shared": (KB, 0)}, source="first") as first,
            space.claiming({"shared": (KB, 0), "own": (KB, 0)}, source="second") as second,
        ):
            await space.reserve("shared", KB, source="first")
            space.written("shared", KB)
            space.release("shared")
            manifest = await parts.publish("first", file=content("f"))
            first.settle(frozenset(record.inode for record in manifest.files), {"shared"})
            assert (first.written(), second.written()) == (KB, 0)
            report = await parts.evictor.report()
            assert (report.used, report.claimed) == (KB, KB)
            await space.reserve("more", KB, source="third")
        assert await parts.names() == {"first"}
        space.release("more")
        assert space.claimed == 0


async def test_of_what_is_claimed_the_report_says_what_is_still_to_be_written(
    tmp_path: Path,
) -> None:
    async with keeping(tmp_path) as parts:
        await parts.space.reserve("coming", 3 * KB, source="org/coming")
        parts.space.written("coming", KB)
        report = await parts.evictor.report()
        assert (report.claimed, report.lacking) == (3 * KB, 2 * KB)
