"""The cache directory: what is believed in it, who may write to it, and that writes are whole."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from craftcache import IntegrityError
from craftcache.cache.directory import CacheDir
from craftcache.cache.durable import file_mode, make_directory, write_file
from craftcache.digests import Digest, Promise, hash_file, hash_stamped

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Iterator
    from pathlib import Path

OTHER_UID = 54321
CONTENT = b"all the weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")


@pytest.fixture
def cache(tmp_path: Path) -> CacheDir:
    cache = CacheDir(tmp_path / "cache", frozenset({os.geteuid()}))
    cache.create()
    return cache


@pytest.fixture
def blob(cache: CacheDir) -> Path:
    path = cache.url_blobs.path(SHA256)
    write_file(path, CONTENT, staging=cache.staging)
    return path


# --- What is believed ---


def test_what_only_a_trusted_owner_can_write_is_trusted(cache: CacheDir, blob: Path) -> None:
    assert cache.is_trusted(blob)
    assert not cache.is_trusted(cache.url_blobs.path("0" * 64))


@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("level", ["blob", "directory", "root"])
def test_what_others_can_write_or_replace_is_not_trusted(
    cache: CacheDir, blob: Path, level: str, mode: int
) -> None:
    path = {"blob": blob, "directory": blob.parent, "root": cache.root}[level]
    path.chmod(stat.S_IMODE(path.stat().st_mode) | mode)
    assert not cache.is_trusted(blob)


@as_root
@pytest.mark.parametrize("level", ["blob", "directory", "root"])
def test_what_belongs_to_somebody_else_is_not_trusted(
    cache: CacheDir, blob: Path, level: str
) -> None:
    path = {"blob": blob, "directory": blob.parent, "root": cache.root}[level]
    os.chown(path, OTHER_UID, -1)
    assert not cache.is_trusted(blob)
    assert CacheDir(cache.root, frozenset({os.geteuid(), OTHER_UID})).is_trusted(blob)


def test_a_link_is_as_trusted_as_what_it_leads_to(
    cache: CacheDir, blob: Path, tmp_path: Path
) -> None:
    inside, outside = cache.root / "inside", cache.root / "outside"
    inside.symlink_to(blob)
    (tmp_path / "elsewhere").write_bytes(CONTENT)
    outside.symlink_to(tmp_path / "elsewhere")
    assert cache.is_trusted(inside)
    assert not cache.is_trusted(outside)
    blob.chmod(0o666)
    assert not cache.is_trusted(inside)


def test_who_may_publish(tmp_path: Path) -> None:
    assert CacheDir(tmp_path / "not" / "yet").is_writable()
    assert CacheDir(tmp_path).is_writable()
    (tmp_path / "file").touch()
    assert not CacheDir(tmp_path / "file" / "cache").is_writable()


@as_root
def test_a_cache_of_somebody_else_is_not_for_publishing_even_by_root(tmp_path: Path) -> None:
    os.chown(tmp_path, OTHER_UID, -1)
    assert not CacheDir(tmp_path).is_writable()


# --- Publishing ---


def test_a_published_blob_is_one_file_under_its_digest_that_nobody_writes_to(
    cache: CacheDir, tmp_path: Path
) -> None:
    staged = cache.staging / "one"
    staged.write_bytes(CONTENT)
    final = cache.url_blobs.publish(hash_stamped(staged)).path
    assert final == cache.url_blobs.path(SHA256)
    assert final.samefile(staged)
    assert stat.S_IMODE(final.stat().st_mode) == 0o444
    again = cache.staging / "two"
    again.write_bytes(CONTENT)
    assert cache.url_blobs.publish(hash_stamped(again)).path == final
    assert final.read_bytes() == CONTENT
    assert sorted(os.listdir(cache.staging)) == ["one", "two"]


@pytest.mark.parametrize("published", ["by url", "by repository"])
def test_what_was_written_to_after_it_was_hashed_is_not_published(
    cache: CacheDir, published: str
) -> None:
    staged = cache.staging / "one"
    staged.write_bytes(CONTENT)
    hashed = hash_stamped(staged)
    with staged.open("r+b") as late:
        late.write(b"X")
    os.utime(staged, ns=(0, hashed.stamp.mtime_ns + 1))
    tree = cache.hub_tree("org/name")
    by_url = published == "by url"
    final = cache.url_blobs.path(SHA256) if by_url else tree.blob(SHA256)
    with pytest.raises(IntegrityError) as raised:
        cache.url_blobs.publish(hashed) if by_url else tree.publish_blob(hashed, SHA256, Promise())
    assert raised.value.retryable
    assert not final.exists()


def test_a_wrong_blob_of_the_hub_is_replaced_and_kept_for_a_look(cache: CacheDir) -> None:
    tree = cache.hub_tree("org/name")
    promise = Promise(len(CONTENT), Digest("sha256", SHA256))
    final = tree.blob(SHA256)
    make_directory(final.parent)
    final.write_bytes(b"x" * len(CONTENT))
    staged = cache.staging / "right"
    staged.write_bytes(CONTENT)
    assert tree.adopt(SHA256, promise) is None
    assert tree.publish_blob(hash_stamped(staged), SHA256, promise).path == final
    assert final.read_bytes() == CONTENT
    (kept,) = cache.quarantine.iterdir()
    assert kept.read_bytes() == b"x" * len(CONTENT)
    assert os.listdir(cache.staging) == ["right"]


def test_a_right_blob_of_the_hub_stays(cache: CacheDir) -> None:
    tree = cache.hub_tree("org/name")
    promise = Promise(len(CONTENT), Digest("sha256", SHA256))
    make_directory(tree.blob(SHA256).parent)
    tree.blob(SHA256).write_bytes(CONTENT)
    inode = tree.blob(SHA256).stat().st_ino
    staged = cache.staging / "same"
    staged.write_bytes(CONTENT)
    tree.publish_blob(hash_stamped(staged), SHA256, promise)
    assert tree.blob(SHA256).stat().st_ino == inode
    assert not cache.quarantine.exists()


def test_a_blob_of_the_hub_that_leads_elsewhere_is_not_adopted(
    cache: CacheDir, tmp_path: Path
) -> None:
    tree = cache.hub_tree("org/name")
    make_directory(tree.blob(SHA256).parent)
    (tmp_path / "elsewhere").write_bytes(CONTENT)
    tree.blob(SHA256).symlink_to(tmp_path / "elsewhere")
    assert tree.adopt(SHA256, Promise(digest=Digest("sha256", SHA256))) is None


@pytest.fixture(params=["hub", "url"])
def lock(
    request: pytest.FixtureRequest, cache: CacheDir
) -> Callable[..., contextlib.AbstractContextManager[bool]]:
    return cache.hub_tree("org/name").lock if request.param == "hub" else cache.lock


def test_a_lock_held_elsewhere_is_waited_for_and_passed_by(
    lock: Callable[..., contextlib.AbstractContextManager[bool]],
) -> None:
    with lock("name") as first, lock("name", seconds=0.01) as second:
        assert (first, second) == (True, False)
    with lock("name", seconds=0.01) as third:
        assert third


# --- Durable writes ---


def test_a_written_file_has_its_content_and_mode_and_leaves_nothing_else(tmp_path: Path) -> None:
    staging = make_directory(tmp_path / "staging")
    path = tmp_path / "file"
    write_file(path, b"old", staging=staging)
    write_file(path, b"new", staging=staging, mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not os.listdir(staging)


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    staging = make_directory(tmp_path / "staging")
    path = make_directory(tmp_path / "directory")
    with pytest.raises(OSError, match="directory"):
        write_file(path, b"new", staging=staging)
    assert not os.listdir(staging)
    assert path.is_dir()


WRITER = """
import sys
from pathlib import Path
from craftcache.cache.durable import write_file
path, staging = map(Path, sys.argv[1:])
number = 0
while True:
    write_file(path, b"%08d" % number * 4096, staging=staging)
    number += 1
    print(number, flush=True)
"""


@pytest.mark.parametrize("writes", [1, 2, 5])
def test_a_reader_sees_the_old_file_or_the_new_one_whenever_the_writer_is_killed(
    tmp_path: Path, writes: int
) -> None:
    staging = make_directory(tmp_path / "staging")
    path = tmp_path / "file"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(staging)], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    with writer, writer.stdout as lines:
        for _ in range(writes):
            assert lines.readline()
            seen = path.read_bytes()
            assert seen == seen[:8] * 4096
        writer.send_signal(signal.SIGKILL)
    left = path.read_bytes()
    assert left == left[:8] * 4096
    assert int(left[:8]) >= writes - 1


def test_directories_are_made_by_any_number_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    start = threading.Barrier(8)
    failures: list[Exception] = []

    def make() -> None:
        start.wait()
        try:
            make_directory(path)
        except Exception as error:  # noqa: BLE001  # whatever it is, the test's own thread shows it
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert path.is_dir()


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_umask_is_read_without_being_changed(umask: int, tmp_path: Path) -> None:
    assert file_mode() == 0o644 & ~umask  # what others can write to nobody believes
    (tmp_path / "file").touch()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_a_files_digests_do_not_depend_on_how_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    digests = hash_file(tmp_path / "file", git=True)
    git = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    assert (digests.size, digests.sha256, digests.git_sha1) == (len(CONTENT), SHA256, git)
