"""What huggingface_hub left, where a model's manifest is gone: what is believed of it, and why."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.errors import Offline
from craftcache.sources import HubSource
from tests.support.checkpoints import assert_same, saved
from tests.support.clients import FILENAMES, expected

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache import Client
    from craftcache.cache.hub_cache import HubTree

MODEL = "org/model"
PLANTED = {"best_state": {"planted": 1}}


@pytest.fixture
def offline(alone: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A worker alone that has loaded the model by its branch and by its commit, and is offline."""
    alone.load(f"{MODEL}@{alone.load(MODEL).revision}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return alone


def tree_of(client: Client) -> HubTree:
    return CacheDir(client.cache_dir).hub_tree(MODEL)


def commit_of(client: Client) -> str:
    commit = tree_of(client).commit_of("main")
    assert commit is not None
    return commit


def forget(client: Client, *revisions: str) -> None:
    """Remove the model's manifests of these revisions."""
    for revision in revisions:
        key = manifest_key(HubSource(MODEL, revision))
        CacheDir(client.cache_dir).manifest_path(key).unlink()


def pointer_of(client: Client, filename: str = FILENAMES[0]) -> Path:
    return tree_of(client).pointer(commit_of(client), filename)


def lead(pointer: Path, blob: str) -> None:
    """Let a snapshot's link lead to that blob."""
    pointer.unlink()
    pointer.symlink_to(f"../../blobs/{blob}")


def plant(client: Client, *, is_lfs: bool) -> str:
    """Put another checkpoint into the Hub's tree under the name that its bytes have there."""
    content = saved(PLANTED)
    named = hashlib.sha256(content).hexdigest()
    if not is_lfs:
        named = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    tree_of(client).blob(named).write_bytes(content)
    return named


def test_without_any_manifest_it_is_loaded_as_the_library_would_and_said(
    offline: Client, caplog: pytest.LogCaptureFixture
) -> None:
    forget(offline, "main", commit_of(offline))
    for _ in range(2):
        export = offline.load(MODEL)
        assert export.served_by == "cache"
        assert_same(export.lm, expected(FILENAMES[0]))
    assert caplog.text.count("as huggingface_hub left it") == 1
    assert offline.resolve(MODEL, FILENAMES[0]) == pointer_of(offline)


def test_what_any_manifest_of_that_commit_says_is_enough_and_nothing_is_said(
    offline: Client, caplog: pytest.LogCaptureFixture
) -> None:
    forget(offline, "main")
    assert_same(offline.load(MODEL).lm, expected(FILENAMES[0]))
    assert "as huggingface_hub left it" not in caplog.text


@pytest.mark.parametrize("gone", ["branch", "commit"])
@pytest.mark.parametrize("planted", ["the other file", "a sha256", "a git-sha1"])
def test_links_are_held_to_what_any_manifest_of_that_commit_says(
    offline: Client, gone: str, planted: str, caplog: pytest.LogCaptureFixture
) -> None:
    commit = commit_of(offline)
    forget(offline, "main" if gone == "branch" else commit)
    source = MODEL if gone == "branch" else f"{MODEL}@{commit}"
    blob = pointer_of(offline, FILENAMES[1]).resolve().name
    if planted != "the other file":
        blob = plant(offline, is_lfs=planted == "a sha256")
    lead(pointer_of(offline), blob)
    with pytest.raises(Offline):
        offline.load(source)
    assert "lead to other files" in caplog.text


def test_a_blob_is_held_to_its_name(offline: Client) -> None:
    forget(offline, "main", commit_of(offline))
    pointer = pointer_of(offline)
    blob = pointer.resolve()
    blob.unlink()
    blob.write_bytes(saved(PLANTED))
    with pytest.raises(Offline):
        offline.load(MODEL)
    named = plant(offline, is_lfs=False)
    other = f"{'0' * 39}{'1' if named[-1] != '1' else '2'}"
    blob.with_name(named).rename(blob.with_name(other))
    lead(pointer, other)
    with pytest.raises(Offline):
        offline.load(MODEL)


def test_a_commit_has_one_spelling(offline: Client) -> None:
    """By another one it would have no records."""
    commit = commit_of(offline)
    forget(offline, "main")
    (tree_of(offline).root / "refs" / "main").write_text(f"{commit}/.")
    lead(pointer_of_commit(offline, commit), plant(offline, is_lfs=True))
    with pytest.raises(Offline):
        offline.load(MODEL)


def pointer_of_commit(client: Client, commit: str) -> Path:
    return tree_of(client).pointer(commit, FILENAMES[0])


def test_a_path_is_that_of_the_verified_file_whatever_the_link_says(offline: Client) -> None:
    blob = pointer_of(offline).resolve()
    lead(pointer_of(offline), plant(offline, is_lfs=True))
    assert offline.resolve(MODEL, FILENAMES[0]) == blob
