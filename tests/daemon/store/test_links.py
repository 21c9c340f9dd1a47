"""What links and refs are held to, where two repositories have one commit."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.cache.publish import Verified, publish_hub
from craftcache.digests import Digest, Promise, hash_stamped
from craftcache.sources import HubSource
from craftcached.store.links import is_led_astray, mend_links

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.cache.manifest import Manifest

OURS, FORK = HubSource("org/model"), HubSource("me/fork")
OLD, NEW = "1" * 40, "2" * 40


@pytest.fixture
def cache(tmp_path: Path) -> CacheDir:
    cache = CacheDir(tmp_path / "cache", frozenset({os.geteuid()}))
    cache.create()
    return cache


def publish(cache: CacheDir, source: HubSource, commit: str) -> Manifest:
    staged = cache.staging / "file"
    staged.write_bytes(commit.encode())
    verified = Verified(hash_stamped(staged), None, 0, 0)
    promise = Promise(len(commit), Digest("sha256", verified.digests.sha256))
    files = {"file": (verified, promise)}
    manifest = publish_hub(cache, source, commit, files, "https://hub/resolve", is_named=True)
    cache.discard(verified.file)
    return manifest


def moved_on(cache: CacheDir) -> Manifest:
    """A model whose ref names a newer commit, which huggingface_hub fetched for itself."""
    ours, tree = publish(cache, OURS, OLD), cache.hub_tree(OURS.repo_id)
    etag = hashlib.sha256(NEW.encode()).hexdigest()
    tree.blob(etag).write_text(NEW)
    tree.link_snapshot(NEW, {"file": etag})
    tree.move_ref("main", NEW)
    return ours


def test_a_ref_that_huggingface_hub_has_moved_on_stays(cache: CacheDir) -> None:
    ours = moved_on(cache)
    assert not is_led_astray(cache, manifest_key(OURS), ours)
    assert mend_links(cache, manifest_key(OURS), ours) == []
    assert cache.hub_tree(OURS.repo_id).commit_of("main") == NEW


def test_a_ref_goes_back_where_its_commit_is_known_of_a_fork_alone(cache: CacheDir) -> None:
    ours = moved_on(cache)
    publish(cache, FORK, NEW)
    assert is_led_astray(cache, manifest_key(OURS), ours)
    mend_links(cache, manifest_key(OURS), ours)
    assert cache.hub_tree(OURS.repo_id).commit_of("main") == OLD


def test_a_ref_of_a_tree_that_is_another_models_is_put_back(cache: CacheDir) -> None:
    ours = publish(cache, OURS, OLD)
    publish(cache, FORK, NEW)
    one, two = cache.hub_tree(OURS.repo_id).root, cache.hub_tree(FORK.repo_id).root
    for old, new in ((one, cache.root / "away"), (two, one), (cache.root / "away", two)):
        old.rename(new)
    assert is_led_astray(cache, manifest_key(OURS), ours)
    assert mend_links(cache, manifest_key(OURS), ours) == list(ours.files)
    assert cache.hub_tree(OURS.repo_id).commit_of("main") == OLD
