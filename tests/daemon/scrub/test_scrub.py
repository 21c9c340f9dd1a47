"""The scrub, step by step: what it hashes when, also after a restart, and what it finds."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.manifest import manifest_key
from craftcache.cache.publish import Verified
from craftcache.cache.stamps import FileStamp
from craftcache.daemon.administration import QuarantinedFile
from craftcache.digests import Promise, hash_stamped
from craftcache.durations import DAY_SECONDS
from craftcache.sources import HubSource, UrlSource
from craftcached.database import Database, Hashing
from craftcached.in_use import is_in_use
from craftcached.scrub.background import STRUCTURE_SECONDS, Scrub
from craftcached.scrub.hashing import GIVING_WAY_SECONDS, FileHasher, Paced
from craftcached.scrub.schedule import PATIENT_SHARE
from craftcached.store.quarantine import overdue
from tests.support.scrubbing import Bench, bench
from tests.support.tools import needs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from craftcache.cache.manifest import FileRecord

DAYS = 7.0
MIB = 1024 * 1024
HALF = DAYS * DAY_SECONDS / 2
NAMES = ("one", "two", "three")


@asynccontextmanager
async def filled(base: Path) -> AsyncIterator[tuple[Bench, dict[str, FileRecord]]]:
    """A bench whose cache holds three models of one file each, hashed now."""
    async with bench(base) as parts:
        records = {}
        for name in NAMES:
            source, came = UrlSource(f"https://host/{name}.json"), parts.store.cache.staging / name
            came.write_bytes(name.encode())
            verified = Verified(hash_stamped(came), None, 0, 0)
            manifest = await parts.store.publisher.publish_url(
                source, {f"{name}.json": (verified, source.url)}
            )
            await parts.store.discard(verified)
            (records[name],) = manifest.files
        parts.now = max(record.verified_at.timestamp() for record in records.values())
        yield parts, records


def rot(path: Path) -> None:
    """Change a byte as a failing disk does: nothing else tells of it, not even the ctime."""
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")


async def hashed(parts: Bench) -> dict[str, float]:
    """When each file was hashed again, by the beginning of its path."""
    return {each.path: each.hashed_at for each in await parts.records.hashings()}


async def test_each_file_is_hashed_once_when_half_the_time_is_over(base: Path) -> None:
    async with filled(base) as (parts, records):
        scrub = parts.scrub(DAYS)
        assert 0 < await scrub.step() <= 60
        assert await hashed(parts) == {}
        parts.now += HALF + 2
        for _ in NAMES:
            assert await scrub.step() == 0.0
        assert await hashed(parts) == {record.path: parts.now for record in records.values()}
        assert await scrub.step() > 0
        assert scrub.hashed_since == parts.now
        assert scrub.found == {"right": 3}


class CountedDatabase(Database):
    """Counts how often it is asked for all hashings, as each survey asks."""

    surveys = 0

    async def hashings(self) -> list[Hashing]:
        self.surveys += 1
        return await super().hashings()


async def test_one_survey_serves_the_turns_of_a_minute(base: Path) -> None:
    async with filled(base) as (parts, records), CountedDatabase(base / "counted") as counted:
        parts.now += HALF + 2
        scrub = Scrub(
            store=parts.store,
            records=counted,
            examiner=parts.examiner,
            quarantine=parts.quarantine,
            days=DAYS,
            clock=parts.clock,
        )
        for _ in NAMES:
            assert await scrub.step() == 0.0
        assert counted.surveys == 1
        assert set(await hashed(parts)) == {record.path for record in records.values()}
        parts.now += 61
        await scrub.step()
        assert counted.surveys == 2


async def test_a_scrub_goes_on_where_it_was_before_a_restart(base: Path) -> None:
    async with filled(base) as (parts, records):
        parts.now += HALF + 2
        seen = set()
        for number in range(1, 4):
            assert await parts.scrub(DAYS).step() == 0.0  # another one each time
            seen = set(await hashed(parts))
            assert len(seen) == number
            parts.now += 1
        assert seen == {record.path for record in records.values()}
        assert await parts.scrub(DAYS).step() > 0


async def test_rot_goes_to_quarantine_at_once_and_is_tried_again_soon(base: Path) -> None:
    async with filled(base) as (parts, records):
        path = parts.store.cache.path(records["two"])
        rot(path)
        parts.now += HALF + 2
        scrub = parts.scrub(DAYS)
        for _ in NAMES:
            await scrub.step()
        assert scrub.found == {"right": 2, "wrong": 1}
        assert not path.exists()
        (file,) = await parts.quarantine.files()
        assert file.name.startswith(records["two"].sha256)
        assert file.sources == ("https://host/two.json",)
        assert 0 < await scrub.step() <= 60
        parts.now += 601
        assert await scrub.step() == 0.0
        assert scrub.found == {"right": 2, "wrong": 1, "missing": 1}


async def test_what_was_set_aside_outside_of_the_scrub_is_mended_soon(base: Path) -> None:
    """As at the daemon's start, or at a load whose own fetch fails."""
    async with filled(base) as (parts, records):
        path = parts.store.cache.path(records["two"])
        rot(path)
        parts.store.cache.path(records["one"]).unlink()  # by somebody who wants the room
        assert await parts.store.verify(records["two"]) is None
        assert not path.exists()
        scrub = parts.scrub(DAYS)
        assert await scrub.step() == 0.0
        assert scrub.found == {"missing": 1}
        assert set(await hashed(parts)) == {records["two"].path}
        parts.now += 599
        assert await scrub.step() > 0  # it could not be mended, so it is tried again later
        parts.now += 2
        assert await scrub.step() == 0.0
        assert scrub.found == {"missing": 2}


@needs("chattr")
async def test_rot_that_cannot_be_moved_is_not_believed_any_more(base: Path) -> None:
    async with filled(base) as (parts, records):
        record, cache = records["one"], parts.store.cache
        path = cache.path(record)
        rot(path)
        if subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
            pytest.skip("no file can be made immutable here")
        try:
            parts.store.cache.stamps.record(record.sha256, FileStamp.of(path.stat()))
            assert cache.is_intact(record)
            parts.now += HALF
            scrub = parts.scrub()
            while scrub.found.get("wrong", 0) == 0:
                await scrub.step()
            assert path.exists()
            assert not cache.is_intact(record)
        finally:
            subprocess.run(["chattr", "-i", path], check=True)


async def test_what_is_removed_is_forgotten(base: Path) -> None:
    async with filled(base) as (parts, records):
        parts.now += HALF + 2
        scrub = parts.scrub(DAYS)
        for _ in NAMES:
            await scrub.step()
        await parts.store.remove(manifest_key(UrlSource("https://host/one.json")))
        await scrub.step()
        assert set(await hashed(parts)) == {records[name].path for name in ("two", "three")}


async def test_two_models_that_take_one_anothers_ref_are_named_each_time(base: Path) -> None:
    """Not only mended for ever: neither leads where it should for long."""
    async with bench(base) as parts:
        trees = []
        for name in NAMES[:2]:
            source, came = HubSource(f"org/{name}"), parts.store.cache.staging / name
            came.write_bytes(name.encode())
            verified = Verified(hash_stamped(came), hash_stamped(came).digests.sha256, 0, 0)
            commit = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
            files = {"a.json": (verified, Promise())}
            await parts.store.publisher.publish_hub(
                source, commit, files, "https://hub", is_named=True
            )
            await parts.store.discard(verified)
            trees.append(parts.store.cache.hub_tree(source.repo_id).root)
        one, two = trees
        shutil.rmtree(one / "refs")
        (one / "refs").symlink_to(two / "refs")
        scrub = parts.scrub()
        for times in (1, 2):
            parts.now += STRUCTURE_SECONDS
            await scrub.step()
            assert scrub.found["wrong"] == times


async def test_no_days_are_no_scrub(base: Path) -> None:
    async with filled(base) as (parts, records):
        rot(parts.store.cache.path(records["one"]))
        parts.now += 100 * HALF
        assert await parts.scrub(0.0).step() > 0
        assert await hashed(parts) == {}


async def test_no_days_leave_the_look_at_links_and_manifests(base: Path) -> None:
    async with filled(base) as (parts, _):
        path = parts.store.cache.manifest_path(manifest_key(UrlSource("https://host/one.json")))
        path.write_bytes(b"{")
        scrub = parts.scrub(0.0)
        await scrub.step()
        assert scrub.found == {"wrong": 1}


async def test_a_clock_that_was_set_back_delays_nothing(base: Path) -> None:
    async with filled(base) as (parts, _):
        parts.now += HALF + 2
        scrub = parts.scrub(DAYS)
        for _ in NAMES:
            await scrub.step()
        parts.now -= 10 * HALF
        for _ in NAMES:
            assert await scrub.step() == 0.0
        assert set((await hashed(parts)).values()) == {parts.now}
        assert await scrub.step() > 0
        assert scrub.hashed_since is not None
        assert scrub.hashed_since <= parts.now


async def test_a_time_to_come_in_the_database_delays_nothing(base: Path) -> None:
    async with filled(base) as (parts, records):
        for record in records.values():
            await parts.records.save_hashing(
                Hashing(record.path, record.sha256, parts.now + 100 * HALF, False)
            )
        scrub = parts.scrub(DAYS)
        for _ in NAMES:
            assert await scrub.step() == 0.0
        assert set((await hashed(parts)).values()) == {parts.now}
        assert await scrub.step() > 0


async def test_nothing_is_begun_while_other_work_goes_first(base: Path) -> None:
    async with filled(base) as (parts, records):
        parts.now += HALF + 2
        is_busy = True
        scrub = parts.scrub(DAYS, is_busy=lambda: is_busy)
        for _ in NAMES:
            assert 0 < await scrub.step() < 5
        assert await hashed(parts) == {}
        is_busy = False
        for _ in NAMES:
            assert await scrub.step() == 0.0
        assert len(await hashed(parts)) == len(records)
        # It would be late if it waited any longer.
        is_busy = True
        parts.now += 2 * HALF * PATIENT_SHARE
        assert await scrub.step() == 0.0
        assert parts.now in (await hashed(parts)).values()


@pytest.mark.parametrize("size", [0, 6 * MIB + 5, 10 * MIB + 5])  # here, and by a process
async def test_a_file_waits_between_its_pieces_while_other_work_goes_first(
    tmp_path: Path, size: int
) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(size))
    slept: list[float] = []
    seen: list[int] = []
    busy_for = 0

    async def sleep(seconds: float) -> None:
        nonlocal busy_for
        busy_for = max(busy_for - 1, 0)
        slept.append(seconds)
        assert is_in_use(file) is not True  # so that it may make room for what is fetched

    def paced() -> Paced:
        return Paced(64 * MIB, lambda: busy_for > 0, clock=lambda: 0.0, sleep=sleep)

    hasher = FileHasher()
    sha256 = hash_stamped(file).digests.sha256
    assert await hasher.hash(file, paced(), seen.append) == sha256
    assert seen == [*range(4 * MIB, size, 4 * MIB), *([size] if size else [])]
    assert len(slept) == len(seen)
    assert slept[-1:] == ([pytest.approx(size / (64 * MIB))] if size else [])
    busy_for, slept[:] = 100, []
    assert await hasher.hash(file, paced()) == sha256
    assert slept[:100] == [GIVING_WAY_SECONDS] * 100  # before the first piece
    assert len(slept) == 100 + len(seen)
    hasher.close()


def children() -> set[str]:
    """Numbers of this process's children."""
    listed = Path("/proc/self/task").glob("*/children")
    return {pid for each in listed for pid in each.read_text().split()}


async def test_a_hashing_that_is_given_up_leaves_no_process(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(10 * MIB))
    hasher = FileHasher()
    begun = asyncio.Event()

    class Forever:
        goes_last = True

        async def after(self, count: int) -> None:
            begun.set()
            await asyncio.get_running_loop().create_future()

    before = children()
    work = asyncio.create_task(hasher.hash(file, Forever()))
    await begun.wait()
    (child,) = children() - before
    work.cancel()
    await asyncio.wait([work])
    assert work.cancelled()
    assert not Path("/proc", child).exists()
    hasher.close()


async def test_the_quarantine_is_kept_within_a_time_and_a_size(base: Path) -> None:
    files = [QuarantinedFile(str(day), 10, day * DAY_SECONDS, ()) for day in (3, 1, 2)]
    now = 4 * DAY_SECONDS

    def going(days: float, max_bytes: int) -> list[str]:
        return [file.name for file in overdue(files, now, days=days, max_bytes=max_bytes)]

    assert going(0, 0) == []
    assert going(2.5, 0) == ["1"]
    assert going(0, 20) == ["1"]
    assert going(0, 25) == ["1"]
    assert going(0, 1) == ["1", "2", "3"]
    async with filled(base) as (parts, records):
        rot(parts.store.cache.path(records["one"]))
        await parts.verify(await parts.store.published())
        assert await parts.quarantine.totals() == (1, 3)
        parts.quarantine.max_bytes = 2
        await parts.scrub(0.0).step()
        assert await parts.quarantine.totals() == (0, 0)
