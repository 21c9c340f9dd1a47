"""Equal bytes are one published file; what does not fit its stamp is looked at again by hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import Watched, manifest_key
from craftcache.cache.publish import Verified
from craftcache.cache.stamps import FileStamp, Stamps
from craftcache.digests import Digest, Promise, hash_stamped
from craftcache.errors import NotFound
from craftcache.sources import HubSource, UrlSource, WatchSource
from craftcached.events import Event, Events
from craftcached.store.opener import BlobOpener
from craftcached.store.store import Store
from craftcached.watch.generations import Generations
from tests.support.clients import as_root
from tests.support.indexes import index_without_tensors
from tests.support.scrubbing import bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.sources import RemoteSource

NAME = "state_dict.bin"
ONE, OTHER = (UrlSource(f"https://host/{name}/", is_export=True) for name in ("one", "other"))
HUB = HubSource("org/model", "main")
RUN = WatchSource("run", 1)
CONTENT, OTHERS = b"a checkpoint", b"other content"


@pytest.fixture
async def events() -> Events:
    return Events()


@pytest.fixture
async def store(tmp_path: Path, events: Events) -> AsyncIterator[Store]:
    async with Store(CacheDir(tmp_path / "cache"), events) as entered:
        yield entered


async def publish(store: Store, source: RemoteSource, content: bytes = CONTENT) -> Manifest:
    """Bring content anew, as if nothing were known of it, and publish it."""
    path = store.cache.staging / f"came-{os.urandom(4).hex()}"
    path.write_bytes(content)
    verified = Verified(hash_stamped(path), None, len(content), 0)
    sha256 = verified.digests.sha256
    if not await store.index_files.has(sha256, len(content)):
        await store.index_files.write(sha256, index_without_tensors(len(content)))
    match source:
        case UrlSource():
            await store.publisher.publish_url(source, {NAME: (verified, source.url)})
        case WatchSource():
            await store.publisher.publish_generation(
                source.name, Watched("/run", 1), {NAME: verified}
            )
        case HubSource():
            promise = Promise(len(content), Digest("sha256", sha256))
            await store.publisher.publish_hub(
                source, "c1" * 20, {NAME: (verified, promise)}, "https://hub", is_named=True
            )
    await store.discard(verified)
    manifest = store.manifest(source)
    assert manifest is not None
    return manifest


def only(manifest: Manifest) -> FileRecord:
    (record,) = manifest.files
    return record


def is_served(store: Store, source: RemoteSource) -> bool:
    """Whether a worker gets it at once, with nothing hashed."""
    manifest = store.trusted(source)
    if manifest is None:
        return False
    opened = BlobOpener(store, None).open(manifest, manifest.files)
    if opened is not None:
        opened.close()
    return opened is not None


SOURCES = pytest.mark.parametrize("source", [ONE, RUN, HUB], ids=["url", "watch", "hub"])


@SOURCES
@pytest.mark.parametrize("second", [OTHER, RUN, HUB], ids=["url", "watch", "hub"])
async def test_who_brings_the_same_bytes_leaves_the_others_served(
    store: Store, source: RemoteSource, second: RemoteSource
) -> None:
    first = await publish(store, source)
    before = store.cache.path(only(first)).stat()
    await publish(store, second)
    assert store.cache.path(only(first)).stat().st_ino == before.st_ino
    assert is_served(store, source)
    assert is_served(store, second)
    assert os.listdir(store.cache.staging) == []


async def test_two_sources_of_one_content_are_one_file(store: Store) -> None:
    paths = {only(await publish(store, source)).path for source in (ONE, OTHER, RUN)}
    assert len(paths) == 1
    assert not store.cache.quarantine.exists()


async def test_a_published_file_with_other_bytes_gives_way_and_is_kept_aside(store: Store) -> None:
    path = store.cache.path(only(await publish(store, ONE)))
    path.chmod(0o644)
    path.write_bytes(OTHERS[: len(CONTENT)])
    await publish(store, OTHER)
    assert path.read_bytes() == CONTENT
    (aside,) = store.cache.quarantine.iterdir()
    assert aside.read_bytes() == OTHERS[: len(CONTENT)]
    assert is_served(store, OTHER)


def restore(path: Path) -> None:
    """As a backup does: the same bytes in another file, with the times of the old."""
    copy = path.with_name("restored")
    shutil.copy2(path, copy)
    os.replace(copy, path)


def open_to_group(path: Path) -> None:
    path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o060)


def age(path: Path) -> None:
    os.utime(path, ns=(0, 0))


@SOURCES
@pytest.mark.parametrize("change", [restore, open_to_group, age])
async def test_what_was_touched_is_hashed_once_and_then_served(
    store: Store, source: RemoteSource, change: object
) -> None:
    record = only(await publish(store, source))
    assert callable(change)
    change(store.cache.path(record))
    assert not is_served(store, source)
    assert await store.recheck(source, [NAME]) is not None
    assert is_served(store, source)
    assert store.cache.is_ours(store.cache.path(record).stat())
    async with Store(CacheDir(store.cache.root.with_name("another"))) as fresh:
        fresh.cache = CacheDir(store.cache.root)  # as the next daemon sees it, with no memory
        assert fresh.cache.is_intact(record)


@SOURCES
async def test_what_is_wrong_goes_to_quarantine_and_is_told(
    store: Store, source: RemoteSource, events: Events
) -> None:
    path = store.cache.path(only(await publish(store, source)))
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(OTHERS[: len(CONTENT)])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not is_served(store, source)
    heard: list[Event] = []
    events.observe(heard.append)
    assert await store.recheck(source, [NAME]) is None
    (event,) = heard
    assert (event["event"], event["path"]) == ("quarantined", store.cache.relative(path))
    (aside,) = store.cache.quarantine.iterdir()
    assert aside.read_bytes() == OTHERS[: len(CONTENT)]
    assert not path.exists()


@SOURCES
async def test_a_cache_that_was_given_to_a_group_is_served_after_one_hash(
    store: Store, source: RemoteSource
) -> None:
    await publish(store, source)
    for path in store.cache.root.rglob("*"):
        if not path.is_symlink():
            open_to_group(path)
    assert [manifest.source for manifest in await store.manifests()] == [source.shown]
    assert store.trusted(source) is None
    await store.recheck_all()
    manifest = await store.recheck(source, [NAME])
    assert manifest is not None
    record = only(manifest)
    assert await store.index_files.has(record.sha256, record.size)
    assert is_served(store, source)
    assert store.cache.is_ours(store.cache.manifest_path(manifest_key(source)).stat())


async def test_a_manifest_that_others_may_write_to_is_not_served_before_it_is_hashed(
    store: Store,
) -> None:
    one, other = await publish(store, ONE), await publish(store, OTHER, OTHERS)
    path = store.cache.manifest_path(manifest_key(ONE))
    store.cache.write_manifest(ONE, one)
    open_to_group(path)
    assert not is_served(store, ONE)
    assert is_served(store, OTHER)
    assert await store.recheck(ONE, [NAME]) == one
    assert only(other).sha256 != only(one).sha256


async def test_a_generation_that_others_may_have_written_is_hashed_before_it_is_served(
    store: Store,
) -> None:
    manifest = await publish(store, RUN)
    index = store.cache.index_path(only(manifest).sha256)
    forged = index.read_bytes() + b" "
    index.write_bytes(forged)
    record = replace(only(manifest), index_sha256=hashlib.sha256(forged).hexdigest())
    store.cache.write_manifest(RUN, replace(manifest, files=(record,)))
    open_to_group(store.cache.manifest_path(manifest_key(RUN)))
    served = await Generations(store, "run", [1]).serve(1)
    assert only(served).index_sha256 is None
    path = store.cache.path(record)
    path.chmod(0o644)
    path.write_bytes(OTHERS)
    open_to_group(store.cache.manifest_path(manifest_key(RUN)))
    with pytest.raises(NotFound):
        await Generations(store, "run", [1]).serve(1)


@as_root
async def test_a_manifest_of_another_user_is_neither_listed_nor_looked_at(store: Store) -> None:
    await publish(store, ONE)
    os.chown(store.cache.manifest_path(manifest_key(ONE)), 65534, -1)
    assert await store.manifests() == []
    assert await store.recheck(ONE, [NAME]) is None


async def test_another_name_for_a_file_costs_no_hash(store: Store) -> None:
    record = only(await publish(store, ONE))
    found = await store.local.find(record.sha256, store.cache.staging)
    assert found is not None
    assert store.cache.is_intact(record)
    await store.discard(found)
    assert store.cache.is_intact(record)
    await store.remove(manifest_key(OTHER))
    assert store.cache.is_intact(record)


async def test_what_is_verified_on_demand_is_known_afterwards(store: Store, tmp_path: Path) -> None:
    manifest = await publish(store, ONE)
    restore(store.cache.path(only(manifest)))
    async with bench(tmp_path, store) as parts:
        (verdict,) = await parts.verify([(manifest_key(ONE), manifest)])
    assert verdict.outcome == "right"
    assert store.cache.is_intact(only(manifest))


async def test_stamps_that_are_lost_or_damaged_cost_one_hash(store: Store, tmp_path: Path) -> None:
    record = only(await publish(store, ONE))
    path = store.cache.stamps.path(record.sha256)
    for damage in (
        b"",
        b"[]",
        b"{}",
        path.read_bytes()[:-9],
        path.read_bytes().replace(b"1", b"2"),
    ):
        path.write_bytes(damage)
        cache = CacheDir(store.cache.root)
        assert not cache.is_intact(record)
        cache.hash_again(record)
        assert cache.is_intact(record)
        assert CacheDir(store.cache.root).is_intact(record)


def test_stamps_that_others_may_write_to_say_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    stamps = Stamps(tmp_path / "stamps", tmp_path, lambda status: not status.st_mode & 0o022)
    stamps.record("a" * 64, FileStamp.of(file.stat()))

    def afresh() -> Stamps:
        return Stamps(tmp_path / "stamps", tmp_path, lambda status: not status.st_mode & 0o022)

    assert afresh().has("a" * 64, file.stat())
    assert not afresh().has("b" * 64, file.stat())
    shutil.copy2(stamps.path("a" * 64), stamps.path("b" * 64))
    assert not afresh().has("b" * 64, file.stat())
    assert not afresh().has("a" * 64, file.stat(), is_trusted=lambda _: False)
    open_to_group(stamps.path("a" * 64))
    stamps.path("a" * 64).chmod(0o664)
    assert not afresh().has("a" * 64, file.stat())
    assert stamps.has("a" * 64, file.stat())  # what was read once stays true
