"""The pipeline of a warm, step by step, for every kind of origin."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.errors import StorageFull
from craftcache.origins.policy import UrlPolicy
from craftcache.sources import HubSource, UrlSource
from craftcached.fetch import Engine, Priority
from craftcached.inspect import Inspector
from craftcached.store.store import Store
from craftcached.warm.acquire import FileAcquirer
from craftcached.warm.allow import FetchPolicy
from craftcached.warm.hub import Hub
from craftcached.warm.inspections import CheckpointInspections
from craftcached.warm.origins import Origins
from craftcached.warm.warmer import Warmer
from tests.support.fetching import QUICK
from tests.support.hub import Data

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from craftcache.cache.manifest import Manifest
    from craftcached.warm.description import Description, FetchedSource
    from craftcached.warm.pipeline import Admission
    from craftcached.warm.warmed import Warmed
    from tests.support.hub import TestHub

FILES = {"config.json": b'{"a": 1}', "weights.txt": b"0.25 " * 1000}
NEWER = {"config.json": b'{"a": 2}', "weights.txt": b"0.50 " * 1000}


class Origin(Protocol):
    """A kind of origin of the test hub."""

    source: FetchedSource
    filenames: tuple[str, ...]

    def put(self, files: Mapping[str, bytes]) -> None:
        """Let the source have these files."""


class Repository:
    """A repository of the test hub."""

    source = HubSource("org/model")
    filenames = tuple(FILES)

    def __init__(self, hub: TestHub) -> None:
        self._repo = hub.repo("org/model")

    def put(self, files: Mapping[str, bytes]) -> None:
        self._repo.commit(files, lfs=["weights.txt"])


class Plain:
    """A single file on the test hub's plain server."""

    filenames = ("config.json",)

    def __init__(self, hub: TestHub) -> None:
        self._files = hub.files
        self.source = UrlSource(hub.cdn_url("/plain/config.json"))

    def put(self, files: Mapping[str, bytes]) -> None:
        self._files["/plain/config.json"] = Data(files["config.json"])


@dataclass(frozen=True, slots=True)
class Node:
    """What a daemon warms with."""

    store: Store
    origins: Origins
    warmer: Warmer
    admitted: list[Description]

    async def warm(self, origin: Origin, *, refresh: bool = True) -> Warmed:
        return await self.warmer.warm(
            origin.source,
            origin.filenames,
            refresh=refresh,
            priority=Priority.BACKGROUND,
            report=lambda _: None,
        )

    async def described(self, origin: Origin, known: Manifest, *, refresh: bool) -> Description:
        return await self.origins.of(origin.source).describe(
            origin.filenames[:1], known=known, refresh=refresh
        )


@contextlib.asynccontextmanager
async def running(
    base: Path, test_hub: TestHub, admission: Admission | None
) -> AsyncIterator[Node]:
    cache = CacheDir(base)
    policy = UrlPolicy(insecure_hosts=frozenset({"127.0.0.1"}), hub_endpoint=test_hub.endpoint)
    admitted: list[Description] = []

    @contextlib.asynccontextmanager
    async def admit_all(description: Description) -> AsyncIterator[None]:
        admitted.append(description)
        yield

    async with (
        Store(cache) as store,
        Inspector() as inspector,
        Engine(
            cache.staging / "fetch",
            QUICK,
            check_url=policy.check_url,
            may_be_private=policy.may_be_private,
        ) as engine,
    ):
        hub = Hub(endpoint=test_hub.endpoint, token=None, timeout=10.0)
        origins = Origins(hub, policy)
        inspections = CheckpointInspections(store, inspector)
        warmer = Warmer(
            store=store,
            origins=origins,
            acquirer=FileAcquirer(store=store, fetcher=engine, inspections=inspections),
            inspections=inspections,
            policy=FetchPolicy(("*",)),
            admission=admission or admit_all,
        )
        yield Node(store, origins, warmer, admitted)
        hub.close()


@pytest.fixture
async def node(base: Path, hub: TestHub) -> AsyncIterator[Node]:
    async with running(base, hub, None) as node:
        yield node


@pytest.fixture(params=[Repository, Plain])
def origin(request: pytest.FixtureRequest, hub: TestHub) -> Origin:
    """An origin of each kind, which has FILES."""
    made: Origin = request.param(hub)
    made.put(FILES)
    return made


async def test_what_is_unchanged_is_described_as_what_is_published(
    node: Node, origin: Origin
) -> None:
    known = (await node.warm(origin)).manifest
    described = await node.described(origin, known, refresh=True)
    assert {file.filename: file.current for file in described.files} == {
        record.filename: record for record in known.files
    }


async def test_a_refresh_describes_all_that_is_published_and_none_of_it_as_current_once_it_changed(
    node: Node, origin: Origin
) -> None:
    known = (await node.warm(origin)).manifest
    origin.put(NEWER)
    described = await node.described(origin, known, refresh=True)
    assert {file.filename for file in described.files} == {file.filename for file in known.files}
    assert [file.current for file in described.files] == [None] * len(known.files)
    assert described.commit != known.revision


async def test_without_a_refresh_the_published_revision_is_described(
    node: Node, origin: Origin
) -> None:
    known = (await node.warm(origin)).manifest
    origin.put(NEWER)
    described = await node.described(origin, known, refresh=False)
    [file] = described.files
    assert file.current == known.file(file.filename)
    assert described.commit in {known.revision, ""}
    assert not described.is_named


async def test_what_was_described_is_what_is_published(node: Node, origin: Origin) -> None:
    warmed = await node.warm(origin)
    [description] = node.admitted
    assert {file.filename for file in description.files} == set(origin.filenames)
    assert warmed.manifest == node.store.manifest(origin.source)
    assert {record.filename for record in warmed.manifest.files} == set(origin.filenames)
    size = sum(len(FILES[name]) for name in origin.filenames)
    assert (warmed.bytes_fetched, warmed.bytes_reused) == (size, 0)
    shown = node.origins.of(origin.source).shown(description.commit)
    assert all(record.origin.startswith(shown) for record in warmed.manifest.files)


async def test_what_is_not_admitted_is_not_fetched(
    base: Path, hub: TestHub, origin: Origin
) -> None:
    def refuse(description: Description) -> contextlib.AbstractAsyncContextManager[None]:
        raise StorageFull("too large", missing_bytes=7, source=description.source.shown, hint="")

    async with running(base, hub, refuse) as refusing:
        with pytest.raises(StorageFull):
            await refusing.warm(origin)
        assert refusing.store.manifest(origin.source) is None
    assert hub.count("GET") == 0


async def test_room_is_held_until_what_it_was_for_is_published(
    base: Path, hub: TestHub, origin: Origin
) -> None:
    seen: list[bool] = []

    @contextlib.asynccontextmanager
    async def hold(description: Description) -> AsyncIterator[None]:
        seen.append(holding.store.manifest(description.source) is not None)
        yield
        seen.append(holding.store.manifest(description.source) is not None)

    async with running(base, hub, hold) as holding:
        await holding.warm(origin)
    assert seen == [False, True]


async def test_what_is_published_and_wanted_as_it_is_needs_no_room(
    node: Node, origin: Origin
) -> None:
    await node.warm(origin)
    node.admitted.clear()
    assert (await node.warm(origin, refresh=False)).bytes_fetched == 0
    assert node.admitted == []
