"""Another daemon's cache, followed: what is gone there, and what only cannot be looked at."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import manifest_key
from craftcached.observability import Observability
from craftcached.store.owner import OwnerCache
from craftcached.store.store import Store
from tests.daemon.store.test_store import ONE, publish, staged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

KEY = manifest_key(ONE)


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    """The owner's store, which has a model, and that of the node that follows it."""
    async with AsyncExitStack() as stack:
        caches = [CacheDir(tmp_path / name) for name in ("theirs", "ours")]
        theirs, ours = [await stack.enter_async_context(Store(cache)) for cache in caches]
        await publish(theirs, ONE, staged(theirs))
        yield theirs, ours


async def test_what_is_removed_here_only_is_followed_again(stores: tuple[Store, Store]) -> None:
    theirs, ours = stores
    owner = OwnerCache(ours, theirs.cache.root)
    for _ in range(2):
        await owner.follow(ONE)
        assert ours.manifest(ONE) is not None
        await ours.remove(KEY)


def unmounted(root: Path) -> None:
    root.rename(root.with_name("away"))
    root.mkdir()


def unreachable(root: Path) -> None:
    root.rename(root.with_name("away"))
    root.symlink_to(root)  # each look fails, with ELOOP


def unreadable(root: Path) -> None:
    """Its stat is answered, as from memory, and its content is not."""
    path = CacheDir(root).manifest_path(KEY)
    path.unlink()
    path.mkdir()


async def test_what_the_owner_removes_goes_here(stores: tuple[Store, Store]) -> None:
    theirs, ours = stores
    owner = OwnerCache(ours, theirs.cache.root)
    await owner.follow(ONE)
    assert ours.manifest(ONE) is not None
    await theirs.remove(KEY)
    assert not owner.is_followed(ONE)
    await owner.follow(ONE)
    assert ours.manifest(ONE) is None


async def test_what_the_owner_removes_is_told_and_not_lost(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    theirs, _ = stores
    observability = Observability.of(tmp_path / "mine")
    models = observability.models_here
    async with Store(CacheDir(tmp_path / "mine"), observability.events) as mine:
        owner = OwnerCache(mine, theirs.cache.root)
        await owner.follow(ONE)
        models.looked([manifest.source for manifest in await mine.manifests()])
        await theirs.remove(KEY)
        await owner.follow(ONE)
        assert await mine.manifests() == []
    assert models.vanished([]) == frozenset()
    told = [(each.source, each.code) for each in observability.not_warm()]
    assert told == [(ONE.shown, "Removed")]


@pytest.mark.parametrize("happens", [unmounted, unreachable, unreadable])
@pytest.mark.parametrize("restarted", [False, True])
async def test_what_cannot_be_looked_at_stays(
    stores: tuple[Store, Store], happens: Callable[[Path], None], restarted: bool
) -> None:
    theirs, ours = stores
    root = theirs.cache.root
    owner = OwnerCache(ours, root)
    await owner.follow(ONE)
    happens(root)
    if restarted:
        owner = OwnerCache(ours, root)
        await owner.follow_all()
    await owner.follow(ONE)
    assert ours.manifest(ONE) is not None
    if happens is unreadable:
        return
    root.rmdir() if root.is_dir() else root.unlink()
    root.with_name("away").rename(root)
    await owner.follow(ONE)
    assert owner.is_followed(ONE)
    await theirs.remove(KEY)
    await owner.follow(ONE)
    assert ours.manifest(ONE) is None
