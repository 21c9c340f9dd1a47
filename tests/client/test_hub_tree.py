"""What other tools or a crash left in the Hub's tree is got over, or named where it cannot be."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.cache.placing import TreeObstacle
from craftcache.digests import Digest, HashedFile, Promise, hash_stamped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from craftcache.cache.hub_cache import HubTree

DATA = b"the right bytes"
COMMIT = "c" * 40


@pytest.fixture
def cache(tmp_path: Path) -> CacheDir:
    """A new cache directory."""
    cache = CacheDir(tmp_path / "cache")
    cache.create()
    return cache


@pytest.fixture
def tree(cache: CacheDir) -> HubTree:
    """The tree of one repository."""
    return cache.hub_tree("org/model")


@pytest.fixture
def staged(cache: CacheDir) -> HashedFile:
    """A verified file in staging."""
    path = cache.staging / "k-1.whole"
    path.write_bytes(DATA)
    return hash_stamped(path)


def publish(tree: HubTree, staged: HashedFile) -> HashedFile:
    """Publish a file as a Hub file is."""
    etag = staged.digests.sha256
    published = tree.publish_blob(staged, etag, Promise(len(DATA), Digest("sha256", etag)))
    tree.link_snapshot(COMMIT, {"state_dict.bin": etag})
    tree.move_ref("main", COMMIT)
    return published


def a_directory(path: Path) -> None:
    path.mkdir()


def a_full_directory(path: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"somebody's")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("../gone")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def a_link_to_a_directory(path: Path) -> None:
    path.symlink_to(path.parent)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def an_empty_file(path: Path) -> None:
    path.touch()


def a_file_of_the_same_size(path: Path) -> None:
    path.write_bytes(bytes(len(DATA)))


def a_file_that_nobody_may_read(path: Path) -> None:
    path.write_bytes(bytes(len(DATA)))
    path.chmod(0)


OBSTACLES = [
    a_directory,
    a_full_directory,
    a_dangling_link,
    a_link_to_itself,
    a_link_to_a_directory,
    a_pipe,
    an_empty_file,
    a_file_of_the_same_size,
    a_file_that_nobody_may_read,
]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_stands_in_a_blobs_place_is_got_over(
    tree: HubTree, staged: HashedFile, obstacle: Callable[[Path], None]
) -> None:
    blob = tree.blob(staged.digests.sha256)
    blob.parent.mkdir(parents=True)
    obstacle(blob)
    promise = Promise(digest=Digest("sha256", staged.digests.sha256))
    assert tree.adopt(staged.digests.sha256, promise) is None
    published = publish(tree, staged)
    assert (published.path, blob.read_bytes(), blob.is_symlink()) == (blob, DATA, False)
    published.check_untouched()
    assert tree.pointer(COMMIT, "state_dict.bin").read_bytes() == DATA


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_stands_in_a_snapshots_place_is_got_over(
    tree: HubTree, staged: HashedFile, obstacle: Callable[[Path], None]
) -> None:
    pointer = tree.pointer(COMMIT, "state_dict.bin")
    pointer.parent.mkdir(parents=True)
    obstacle(pointer)
    publish(tree, staged)
    assert tree.etag_of(COMMIT, "state_dict.bin") == staged.digests.sha256
    assert pointer.read_bytes() == DATA


def test_what_is_moved_away_is_kept(
    cache: CacheDir, tree: HubTree, staged: HashedFile, caplog: pytest.LogCaptureFixture
) -> None:
    blob = tree.blob(staged.digests.sha256)
    blob.parent.mkdir(parents=True)
    a_full_directory(blob)
    publish(tree, staged)
    (kept,) = cache.quarantine.iterdir()
    assert (kept / "file").read_bytes() == b"somebody's"
    assert str(kept) in caplog.text


OF_THE_TREE = ["", "blobs", "snapshots", "refs"]


@pytest.mark.parametrize(
    ("obstacle", "where"),
    [
        *product([a_dangling_link, a_pipe, a_link_to_itself], OF_THE_TREE),
        (a_pipe, f"snapshots/{COMMIT}"),
    ],
)
def test_what_stands_in_a_directorys_place_is_named(
    tree: HubTree, staged: HashedFile, where: str, obstacle: Callable[[Path], None]
) -> None:
    path = tree.root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    obstacle(path)
    with pytest.raises(TreeObstacle, match=str(path)):
        publish(tree, staged)
    assert os.path.lexists(path)
    assert staged.path.read_bytes() == DATA


@pytest.mark.parametrize("obstacle", [a_dangling_link, a_link_to_itself, a_link_to_a_directory])
@pytest.mark.parametrize("below", ["", "/sub"])
def test_a_snapshots_own_directory_is_no_link(
    tree: HubTree, staged: HashedFile, below: str, obstacle: Callable[[Path], None]
) -> None:
    """Nobody moves links to where there is room: it would lead to links of another snapshot's."""
    path = tree.root / f"snapshots/{COMMIT}{below}"
    path.parent.mkdir(parents=True)
    obstacle(path)
    before = sorted(path.parent.iterdir())
    tree.link_snapshot(COMMIT, {f"{below[1:]}/file".lstrip("/"): staged.digests.sha256})
    assert not path.is_symlink()
    assert os.listdir(path) == ["file"]
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("where", [*OF_THE_TREE, f"snapshots/{COMMIT}"])
def test_a_file_in_a_directorys_place_is_moved_away(
    cache: CacheDir, tree: HubTree, staged: HashedFile, where: str
) -> None:
    path = tree.root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"somebody's")
    publish(tree, staged)
    assert tree.commit_of("main") == COMMIT
    assert tree.pointer(COMMIT, "state_dict.bin").read_bytes() == DATA
    (kept,) = cache.quarantine.iterdir()
    assert kept.read_bytes() == b"somebody's"


def test_threads_that_meet_the_same_file_move_it_and_nothing_else(
    cache: CacheDir, tree: HubTree
) -> None:
    """A directory that one has made by then stays, with what is in it."""
    tree.root.mkdir(parents=True)
    for _ in range(50):
        path = tree.root / "blobs"
        path.write_bytes(b"somebody's")
        with ThreadPoolExecutor(4) as pool:
            for place in [pool.submit(tree.check_place) for _ in range(4)]:
                place.result()
        assert path.is_dir()
        path.rmdir()
    assert all(kept.is_file() for kept in cache.quarantine.iterdir())


@pytest.mark.parametrize("where", ["", "blobs", "snapshots"])
def test_it_is_named_before_anything_is_fetched(tree: HubTree, where: str) -> None:
    path = tree.root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/nowhere/disk")
    with pytest.raises(TreeObstacle, match="is a link to /nowhere/disk, which is not there"):
        tree.check_place()


def test_a_ref_that_is_a_directory_is_moved_away(
    cache: CacheDir, tree: HubTree, staged: HashedFile
) -> None:
    (tree.root / "refs" / "main" / "deeper").mkdir(parents=True)
    publish(tree, staged)
    assert tree.commit_of("main") == COMMIT
    (kept,) = cache.quarantine.iterdir()
    assert (kept / "deeper").is_dir()


def test_old_partial_files_of_the_library_are_left_alone(tree: HubTree, staged: HashedFile) -> None:
    etag = staged.digests.sha256
    partial = tree.blob(f"{etag}.incomplete")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(DATA)
    assert publish(tree, staged).path == tree.blob(etag)
    assert partial.read_bytes() == DATA


def test_a_link_out_of_the_cache_is_nobodys_blob(tree: HubTree, tmp_path: Path) -> None:
    """Only directories that were linked as a whole lead elsewhere."""
    outside = tmp_path / "outside"
    outside.write_bytes(DATA)
    etag = hash_stamped(outside).digests.sha256
    tree.blob(etag).parent.mkdir(parents=True)
    tree.blob(etag).symlink_to(outside)
    assert tree.adopt(etag, Promise(digest=Digest("sha256", etag))) is None
