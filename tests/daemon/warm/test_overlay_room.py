"""What an overlay takes of another daemon's cache: it has room of its own, and is copied."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.errors import StorageFull
from craftcache.origins.policy import UrlPolicy
from craftcache.sources import HubSource
from craftcached.budgets import BudgetLimits, Budgets
from craftcached.database import Database
from craftcached.fetch import Engine, Priority
from craftcached.fetch.disk_space import DiskSpace
from craftcached.inspect import Inspector
from craftcached.store.owner import OwnerCache
from craftcached.store.store import Store
from craftcached.warm.acquire import FileAcquirer
from craftcached.warm.admission import FetchAdmission
from craftcached.warm.allow import FetchPolicy
from craftcached.warm.hub import Hub
from craftcached.warm.inspections import CheckpointInspections
from craftcached.warm.origins import Origins
from craftcached.warm.warmer import Warmer
from tests.support.fetching import QUICK
from tests.support.hub import Data

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from craftcached.warm.warmed import Warmed
    from tests.support.hub import TestHub

LARGE = b"0.25 " * 2000
SOURCE = HubSource("org/model")


class OverlaidNode:
    """A node that warms into a cache directory of its own; its disk has ``free`` bytes."""

    def __init__(self, store: Store, warmer: Warmer) -> None:
        self.store, self.warmer = store, warmer

    async def warm(self, source: HubSource, *names: str, refresh: bool = True) -> Warmed:
        return await self.warmer.warm(
            source,
            names or ("config.json", "weights.txt"),
            refresh=refresh,
            priority=Priority.BACKGROUND,
            report=lambda _: None,
        )

    def own_bytes(self) -> int:
        """Bytes of model files in the cache directory of its own."""
        blobs = self.store.cache.root.glob("models--*/blobs/*")
        return sum(blob.stat().st_size for blob in blobs)


@contextlib.asynccontextmanager
async def overlaid(
    base: Path, hub: TestHub, *, owner: Path | None = None, free: int = 1 << 40
) -> AsyncIterator[OverlaidNode]:
    cache = CacheDir(base / "cache")
    policy = UrlPolicy(insecure_hosts=frozenset({"127.0.0.1"}), hub_endpoint=hub.endpoint)
    staging = cache.staging / "fetch"
    space = DiskSpace(lambda: free, None, cache.root)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store(cache))
        records = await stack.enter_async_context(Database(base / "state"))
        budgets = await stack.enter_async_context(Budgets(records, BudgetLimits()))
        inspector = await stack.enter_async_context(Inspector())
        engine = await stack.enter_async_context(
            Engine(
                staging,
                QUICK,
                check_url=policy.check_url,
                may_be_private=policy.may_be_private,
                space=space,
            )
        )
        origins = Hub(endpoint=hub.endpoint, token=None, timeout=10.0)
        stack.callback(origins.close)
        inspections = CheckpointInspections(store, inspector)
        warmer = Warmer(
            store=store,
            origins=Origins(origins, policy),
            acquirer=FileAcquirer(store=store, fetcher=engine, inspections=inspections),
            inspections=inspections,
            policy=FetchPolicy(("*",)),
            admission=FetchAdmission(space=space, store=store, staging=staging, budgets=budgets),
            owner=None if owner is None else OwnerCache(store, owner),
        )
        yield OverlaidNode(store, warmer)


@pytest.fixture
async def owner(base: Path, hub: TestHub) -> Path:
    """The cache directory of a daemon that has warmed ``org/model``."""
    repo = hub.repo("org/model")
    repo.commit({"config.json": b"{}", "weights.txt": Data(LARGE)}, lfs=["weights.txt"])
    async with overlaid(base / "owner", hub) as node:
        await node.warm(SOURCE)
        return node.store.cache.root


def inodes(owner: Path) -> dict[str, tuple[int, int]]:
    """Links and time of the last change of each of the owner's files."""
    found = {path: path.lstat() for path in owner.glob("models--*/blobs/*")}
    return {str(path): (each.st_nlink, each.st_ctime_ns) for path, each in found.items()}


@pytest.mark.parametrize("way", ["by its commit", "newer", "elsewhere"])
async def test_what_the_owner_has_is_copied_where_there_is_room_and_never_linked(
    base: Path, hub: TestHub, owner: Path, way: str
) -> None:
    before, source = inodes(owner), SOURCE
    files = {"config.json": Data(b"[]"), "weights.txt": Data(LARGE)}
    if way == "newer":
        hub.repo("org/model").commit(files, lfs=["weights.txt"])
    elif way == "elsewhere":
        hub.repo("org/tuned").commit(files, lfs=["weights.txt"])
        source = HubSource("org/tuned")
    for free in (len(LARGE), 10 * len(LARGE)):
        async with overlaid(base / f"node{free}", hub, owner=owner, free=free) as node:
            known = await node.warmer.recheck(SOURCE, ["config.json"], lambda _: None)
            assert known is not None
            if way == "by its commit":
                source = HubSource("org/model", known.revision)
            if free == len(LARGE):  # of the small file's bytes, too few are left
                with pytest.raises(StorageFull):
                    await node.warm(source)
                assert node.own_bytes() == 0
            else:
                warmed = await node.warm(source)
                assert node.own_bytes() == len(LARGE) + 2
                assert not any(map(node.store.cache.is_owners, warmed.manifest.files))
                assert all(map(node.store.cache.is_intact, warmed.manifest.files))
                # The large file came from the owner's disk.
                assert warmed.bytes_fetched <= 2
    assert inodes(owner) == before


async def test_a_refresh_that_finds_the_owners_revision_needs_no_room(
    base: Path, hub: TestHub, owner: Path
) -> None:
    before = inodes(owner)
    async with overlaid(base / "node", hub, owner=owner, free=0) as node:
        await node.warm(SOURCE, refresh=False)
        warmed = await node.warm(SOURCE)
        assert all(map(node.store.cache.is_owners, warmed.manifest.files))
        assert node.own_bytes() == 0
    assert inodes(owner) == before
