"""An index is covered by the digest that the manifest holds, and made anew where it is wrong."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from craftcache import Client
from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.cache.publish import Verified
from craftcache.checkpoint.index import dump
from craftcache.checkpoint.reader import read_index
from craftcache.digests import hash_stamped
from craftcache.sources import FILENAMES, HubSource, UrlSource, parse
from craftcached.store.indexes import Indexes
from craftcached.store.store import Store
from tests.support.checkpoints import assert_same
from tests.support.clients import expected
from tests.support.daemons import EXPORT, EXPORT_FILES
from tests.support.hub import OnDisk
from tests.support.indexes import index_without_tensors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from craftcache.cache.manifest import FileRecord
    from craftcache.sources import RemoteSource
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

LM = FILENAMES["lm"]
SOURCE = UrlSource("https://host/")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store(CacheDir(tmp_path)) as entered:
        yield entered


async def publish(store: Store) -> FileRecord:
    """Publish a real checkpoint with its index."""
    path = store.cache.staging / "came"
    path.write_bytes((EXPORT / LM).read_bytes())
    with path.open("rb") as file:
        index = dump(read_index(file.fileno()))
    verified = Verified(hash_stamped(path), None, 0, 0)
    await store.index_files.write(verified.digests.sha256, index)
    manifest = await store.publisher.publish_url(SOURCE, {LM: (verified, f"{SOURCE.url}{LM}")})
    await store.discard(verified)
    (record,) = manifest.files
    return record


def edits(value: object) -> Iterator[object]:
    """Other values of the same kind in the place of a value of an index, wherever it lies."""
    match value:
        case bool() | None:
            yield 1
        case int():
            yield value + 1
        case float():
            yield value + 1.0
        case str():
            yield value[:-1] + ("x" if value[-1:] != "x" else "y")
        case [first, *rest]:
            yield from ([edited, *rest] for edited in edits(first))
            yield rest
        case dict():
            for key in value:
                yield from (value | {key: edited} for edited in edits(value[key]))
                yield {name: kept for name, kept in value.items() if name != key}
        case _:
            yield [0]


async def test_each_field_of_an_index_that_is_edited_is_noticed(store: Store) -> None:
    record = await publish(store)
    path = store.cache.index_path(record.sha256)
    written = path.read_bytes()
    assert store.cache.read_index(record) == written
    assert await store.index_files.has(record.sha256, record.size)
    count = 0
    for count, edited in enumerate(edits(json.loads(written)), 1):  # noqa: B007  # asserted below
        path.write_text(json.dumps(edited, separators=(",", ":")))
        assert store.cache.read_index(record) is None
        assert not await store.index_files.has(record.sha256, record.size)
        assert store.cache.index(record) is None
    assert count > 20
    path.write_bytes(written)
    assert await store.index_files.has(record.sha256, record.size)


async def test_an_index_that_nobody_vouches_for_is_not_taken_for_one(store: Store) -> None:
    record = await publish(store)
    path = store.cache.manifest_path(manifest_key(SOURCE))
    manifest = path.read_bytes()
    path.unlink()
    fresh = CacheDir(store.cache.root)
    assert fresh.vouched_index(record.sha256) is None
    path.write_bytes(manifest)
    path.chmod(0o666)  # so that others may have written it
    assert fresh.manifest(SOURCE) is not None
    assert fresh.vouched_index(record.sha256) is None
    path.chmod(0o644)
    assert fresh.manifest(SOURCE) is not None
    assert fresh.vouched_index(record.sha256) is not None


async def test_an_index_of_another_version_is_made_anew_and_recorded(store: Store) -> None:
    record = await publish(store)
    path = store.cache.index_path(record.sha256)
    document = json.loads(path.read_bytes()) | {"craftcache_index": 2}
    await store.index_files.write(record.sha256, json.dumps(document).encode())
    later = store.manifest(SOURCE)
    assert later is not None
    assert later.files[0].index_sha256 not in (None, record.index_sha256)
    assert not await store.index_files.has(record.sha256, record.size)  # so it is inspected again
    await store.index_files.write(record.sha256, index_without_tensors(record.size))
    assert await store.index_files.has(record.sha256, record.size)
    again = store.manifest(SOURCE)
    assert again is not None
    digest = hashlib.sha256(index_without_tensors(record.size)).hexdigest()
    assert again.files[0].index_sha256 == digest


def test_what_is_handed_out_cannot_be_changed_by_whoever_has_it() -> None:
    indexes = Indexes()
    data = b"an index"
    digest = hashlib.sha256(data).hexdigest()
    assert indexes.open(digest) is None
    indexes.keep(digest, data)
    indexes.keep(digest, data)
    one, other = indexes.open(digest), indexes.open(digest)
    assert one is not None
    assert other is not None
    os.lseek(one, 3, os.SEEK_SET)
    assert os.read(other, 100) == data  # each has a position of its own
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(one, b"x")
    writable = None
    with contextlib.suppress(OSError):
        writable = os.open(f"/proc/self/fd/{one}", os.O_RDWR)
    if writable is not None:  # root may open it; the kernel still refuses
        with pytest.raises(PermissionError):
            os.write(writable, b"x")
        with pytest.raises(PermissionError):
            os.ftruncate(writable, 0)
        os.close(writable)
    seals = fcntl.fcntl(one, fcntl.F_GET_SEALS)
    assert seals & fcntl.F_SEAL_WRITE
    assert seals & fcntl.F_SEAL_SEAL
    indexes.close()
    assert os.pread(one, 100, 0) == data  # who was handed one keeps it
    for descriptor in (one, other):
        os.close(descriptor)


@pytest.fixture
def url(threaded_hub: TestHub) -> str:
    threaded_hub.files |= {f"/m/{name}": OnDisk(path) for name, path in EXPORT_FILES.items()}
    return threaded_hub.cdn_url("/m/")


def records(cache: CacheDir, source: RemoteSource) -> tuple[FileRecord, ...]:
    manifest = cache.manifest(source)
    assert manifest is not None
    return manifest.files


def edit_digit(path: Path) -> None:
    """Another digit in the offset of the first storage, as rot or a hand may leave it."""
    content = path.read_bytes()
    at = content.index(b'"storages":[') + len(b'"storages":[')
    digit = b"1" if content[at : at + 1] != b"1" else b"2"
    path.write_bytes(content[:at] + digit + content[at + 1 :])


def test_an_edited_index_changes_no_tensor_and_is_made_anew(
    daemon: DaemonProcess, export_repo: Repo, url: str
) -> None:
    sources: dict[str, RemoteSource] = {"org/model": HubSource("org/model"), url: parse(url)}
    cache = CacheDir(daemon.cache_dir)
    with daemon.client() as client:
        for source in sources:
            client.load(source)
    indexes = {
        cache.index_path(record.sha256)
        for source in sources.values()
        for record in records(cache, source)
        if record.filename == LM
    }
    whole = {path: path.read_bytes() for path in indexes}
    for path in indexes:
        edit_digit(path)
    with (
        daemon.client() as client,
        Client(socket_dir=daemon.cache_dir, cache_dir=daemon.cache_dir, fallback="cache") as alone,
    ):
        for source in sources:
            for each, served_by in ((client, "daemon"), (alone, "cache")):
                export = each.load(source)
                assert export.served_by == served_by
                assert_same(export.lm, expected(LM))
        daemon.terminate()
        daemon.start()
        for source in sources:
            assert_same(client.load(source).lm, expected(LM))
    assert {path: path.read_bytes() for path in indexes} == whole
    assert "made anew" in daemon.log


def as_0_1_0_wrote_it(cache: CacheDir, source: RemoteSource) -> None:
    """Leave of a manifest, and of all around it, what that release knew."""
    path = cache.manifest_path(manifest_key(source))
    fields: dict[str, Any] = json.loads(path.read_bytes())
    for name in ("key", "checksum"):
        del fields[name]
    for record in fields["files"]:
        del record["index_sha256"]
    path.write_text(json.dumps(fields, indent=1))
    for stamps in cache.stamps.paths():
        stamps.unlink()


def test_what_an_earlier_release_published_is_served_after_one_hash_and_inspection(
    daemon: DaemonProcess, export_repo: Repo, url: str, threaded_hub: TestHub
) -> None:
    sources: dict[str, RemoteSource] = {"org/model": HubSource("org/model"), url: parse(url)}
    cache = CacheDir(daemon.cache_dir)
    with daemon.client() as client:
        for source in sources:
            client.load(source)
        daemon.terminate()
        for parsed in sources.values():
            as_0_1_0_wrote_it(cache, parsed)
            edit_digit(cache.index_path(records(cache, parsed)[1].sha256))
        sent = threaded_hub.bytes_sent(f"*/{LM}", origin="cdn")
        with Client(
            socket_dir=daemon.cache_dir, cache_dir=daemon.cache_dir, fallback="cache"
        ) as alone:
            for source in sources:
                assert_same(alone.load(source).lm, expected(LM))
        daemon.start()
        for source, parsed in sources.items():
            export = client.load(source)
            assert export.served_by == "daemon"
            assert_same(export.lm, expected(LM))
            assert all(record.index_sha256 for record in records(cache, parsed))
        assert threaded_hub.bytes_sent(f"*/{LM}", origin="cdn") == sent
    for parsed in sources.values():
        fields = json.loads(cache.manifest_path(manifest_key(parsed)).read_bytes())
        assert fields["key"] == manifest_key(parsed)
        assert fields["checksum"]
