"""The store alone: what holds between a removal, a publication and those who leave early."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.cache.publish import Verified
from craftcache.digests import Promise, Stamp, hash_stamped
from craftcache.sources import HubSource, UrlSource
from craftcached.store.manifest_repair import quarantine_manifest, restore_manifest
from craftcached.store.store import Store
from tests.support.indexes import index_without_tensors
from tests.support.scrubbing import bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from craftcache.cache.manifest import Manifest

CONTENT = b"a checkpoint"
ONE, OTHER = (UrlSource(f"https://host/{name}.th") for name in ("one", "other"))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store(CacheDir(tmp_path)) as entered:
        yield entered


def staged(store: Store, content: bytes = CONTENT) -> Verified:
    path = store.cache.staging / "came"
    path.write_bytes(content)
    return Verified(hash_stamped(path), None, len(content), 0)


async def publish(store: Store, source: UrlSource, file: Verified) -> Manifest:
    manifest = await store.publisher.publish_url(source, {source.basename: (file, source.url)})
    await store.discard(file)
    return manifest


async def test_what_is_taken_over_outlives_the_removal_of_its_model(store: Store) -> None:
    await publish(store, ONE, staged(store))
    sha256 = hash_stamped(next(store.cache.url_blobs.paths())).digests.sha256
    found = await store.local.find(sha256, store.cache.staging)
    assert found is not None
    await store.remove(manifest_key(ONE))
    assert list(store.cache.url_blobs.paths()) == []
    manifest = await publish(store, OTHER, found)
    assert store.cache.path(manifest.files[0]).read_bytes() == CONTENT
    assert store.cache.is_intact(manifest.files[0])
    assert os.listdir(store.cache.staging) == []


async def test_a_publication_ends_before_a_cancelled_caller_leaves(store: Store) -> None:
    publishing = asyncio.create_task(publish(store, ONE, staged(store)))
    await asyncio.sleep(0)  # it has begun
    publishing.cancel()
    await asyncio.wait([publishing])
    assert publishing.cancelled()
    manifest = store.manifest(ONE)
    assert manifest is not None
    assert store.cache.is_intact(manifest.files[0])


async def test_the_index_of_a_removed_model_is_swept_and_no_other(store: Store) -> None:
    kept = await publish(store, ONE, staged(store))
    gone = await publish(store, OTHER, staged(store, b"another checkpoint"))
    for manifest in (kept, gone):
        (record,) = manifest.files
        await store.index_files.write(record.sha256, index_without_tensors(record.size))
    await store.remove(manifest_key(OTHER))
    soon = time.time() + 3600
    await store.sweep(before=time.time() - 3600, derived_before=soon)
    assert await store.index_files.has(gone.files[0].sha256, gone.files[0].size)
    await store.sweep(before=soon)  # the rest of its model may still be on its way
    assert await store.index_files.has(gone.files[0].sha256, gone.files[0].size)
    await store.sweep(before=soon, derived_before=soon)
    assert not await store.index_files.has(gone.files[0].sha256, gone.files[0].size)
    assert await store.index_files.has(kept.files[0].sha256, kept.files[0].size)


async def test_what_an_earlier_release_cast_is_swept(store: Store) -> None:
    kept = await publish(store, ONE, staged(store))
    cast = store.cache.private / "casts" / f"{kept.files[0].sha256}.float32"
    cast.parent.mkdir()
    cast.write_bytes(b"wider")
    assert await store.sweep(before=time.time() - 3600) == 0
    assert await store.sweep(before=time.time() + 3600) == len(b"wider")
    assert not cast.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
async def test_a_manifest_of_another_user_is_not_believed(store: Store) -> None:
    await publish(store, ONE, staged(store))
    sha256 = hash_stamped(next(store.cache.url_blobs.paths())).digests.sha256
    os.chown(store.cache.manifest_path(manifest_key(ONE)), 65534, 65534)
    assert store.manifest(ONE) is None
    assert await store.published() == []
    assert await store.manifest_at(manifest_key(ONE)) is None
    assert await store.local.find(sha256, store.cache.staging) is None


def stamp(path: Path) -> Stamp:
    return Stamp.of(path.stat())


async def test_a_good_file_in_the_place_of_a_wrong_one_is_not_set_aside(store: Store) -> None:
    manifest = await publish(store, ONE, staged(store))
    (record,) = manifest.files
    path = store.cache.path(record)
    path.chmod(0o644)
    path.write_bytes(b"not what it was")
    wrong = stamp(path)
    await publish(store, ONE, staged(store))
    assert await store.set_aside(record, wrong) is None
    assert path.read_bytes() == CONTENT
    await store.remove(manifest_key(ONE))
    assert await store.set_aside(record, wrong) is None


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_manifest_that_was_published_since_it_was_seen_damaged_stays(
    store: Store, is_known: bool
) -> None:
    earlier = await publish(store, ONE, staged(store))
    key = manifest_key(ONE)
    path = store.cache.manifest_path(key)
    seen = path.read_bytes()
    path.write_bytes(b"damaged")
    assert await restore_manifest(store, key, earlier)
    assert path.read_bytes() == seen
    now = await publish(store, ONE, staged(store, b"a newer checkpoint"))
    if is_known:
        assert not await restore_manifest(store, key, earlier)
    else:
        assert await quarantine_manifest(store, key) is None
    assert store.manifest(ONE) == now
    await store.remove(key)
    assert not await restore_manifest(store, key, earlier)
    assert store.manifest(ONE) is None


async def test_a_model_that_is_removed_while_others_are_verified_lacks_nothing(
    store: Store, tmp_path: Path
) -> None:
    await publish(store, ONE, staged(store))
    await publish(store, OTHER, staged(store, b"another"))
    models = await store.published()
    await store.remove(manifest_key(ONE))
    async with bench(tmp_path, store) as parts:
        verdicts = await parts.verify(models)
    assert [(each.source, each.outcome) for each in verdicts] == [(OTHER.url, "right")]


async def test_many_that_find_the_cache_emptied_at_once_hold_it_anew_once(store: Store) -> None:
    for _ in range(20):
        shutil.rmtree(store.cache.private)
        await asyncio.gather(*(store.lock.heal() for _ in range(8)))
        assert not store.lock.is_gone()


async def test_the_links_of_a_model_that_is_removed_meanwhile_are_not_made_again(
    store: Store,
) -> None:
    model, name = HubSource("org/model"), "weights.txt"
    earlier, later = "a" * 40, "b" * 40
    for commit in (earlier, later):  # which share the file
        file = staged(store)
        files = {name: (file, Promise())}
        await store.publisher.publish_hub(model, commit, files, "https://hub", is_named=True)
        await store.discard(file)
    gone = HubSource("org/model", earlier)
    manifest, pointer = store.manifest(gone), store.cache.hub_tree("org/model").pointer
    assert manifest is not None
    pointer(earlier, name).unlink()
    assert await store.mend_links(manifest_key(gone), manifest) == list(manifest.files)
    assert pointer(earlier, name).exists()
    await store.remove(manifest_key(gone))
    assert await store.mend_links(manifest_key(gone), manifest) == []
    assert not pointer(earlier, name).is_symlink()
    assert pointer(later, name).exists()
