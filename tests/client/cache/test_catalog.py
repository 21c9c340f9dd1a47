"""Manifests in memory stand for their files, and never longer than these stay as they are."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import FileRecord, Manifest, manifest_key, now
from craftcache.sources import HubSource

if TYPE_CHECKING:
    from pathlib import Path

ONE, TWO = "1" * 64, "2" * 64
KEYS = {name: manifest_key(HubSource(f"org/{name}")) for name in "ab"}


@pytest.fixture
def cache(tmp_path: Path) -> CacheDir:
    cache = CacheDir(tmp_path / "cache", frozenset({os.geteuid()}))
    cache.create()
    return cache


def manifest(source: str, *digests: str) -> Manifest:
    records = tuple(
        FileRecord(f"{number}.bin", f"x/{number}", sha256, 1, "nowhere", now(), 1, 1)
        for number, sha256 in enumerate(digests)
    )
    return Manifest(source, "f" * 40, records, now())


def aged(path: Path) -> None:
    """As if the file had been written a while ago: its last change is further away than a tick."""
    while abs(time.time() - path.stat().st_ctime) < 0.05:
        os.sched_yield()


def test_what_did_not_change_is_read_once(cache: CacheDir) -> None:
    cache.write_manifest_at(KEYS["a"], manifest("org/a", ONE))
    aged(cache.manifest_path(KEYS["a"]))
    first = cache.manifest_at(KEYS["a"])
    assert first is not None
    assert cache.manifest_at(KEYS["a"]) is first
    assert dict(cache.published())[KEYS["a"]] is first


def test_what_was_edited_replaced_or_removed_is_not_what_it_was(cache: CacheDir) -> None:
    path = cache.manifest_path(KEYS["a"])
    cache.write_manifest_at(KEYS["a"], manifest("org/a", ONE))
    aged(path)
    assert cache.manifest_at(KEYS["a"]) is not None
    edited = path.read_bytes().replace(b"org/a", b"org/b")
    path.write_bytes(edited)  # in place, to the same size
    assert cache.manifest_at(KEYS["a"]) is None
    cache.write_manifest_at(KEYS["a"], manifest("org/a", TWO))
    found = cache.manifest_at(KEYS["a"])
    assert found is not None
    assert found.files[0].sha256 == TWO
    path.unlink()
    assert cache.manifest_at(KEYS["a"]) is None
    assert list(cache.published()) == []


def test_what_others_may_write_to_by_now_is_not_ours_though_it_was_read(cache: CacheDir) -> None:
    path = cache.manifest_path(KEYS["a"])
    cache.write_manifest_at(KEYS["a"], manifest("org/a", ONE))
    aged(path)
    assert cache.manifest_at(KEYS["a"], ours=True) is not None
    path.chmod(0o664)
    assert cache.manifest_at(KEYS["a"], ours=True) is None
    assert cache.manifest_at(KEYS["a"], owned=True) is not None
    assert cache.holders(ONE, ours=True) == []


def test_who_holds_a_content_is_known_whoever_wrote_the_manifest(cache: CacheDir) -> None:
    def holders(sha256: str) -> set[str]:
        return {key for key, _ in cache.holders(sha256)}

    assert holders(ONE) == set()
    cache.write_manifest_at(KEYS["a"], manifest("org/a", ONE, TWO))
    cache.write_manifest_at(KEYS["b"], manifest("org/b", TWO))
    assert (holders(ONE), holders(TWO)) == ({KEYS["a"]}, set(KEYS.values()))
    cache.write_manifest_at(KEYS["a"], manifest("org/a", TWO))
    assert holders(ONE) == set()
    # Another process: nothing of it is in this one's memory.
    CacheDir(cache.root, cache.trusted_uids).write_manifest_at(KEYS["b"], manifest("org/b", ONE))
    assert (holders(ONE), holders(TWO)) == ({KEYS["b"]}, {KEYS["a"]})
    cache.manifest_path(KEYS["b"]).unlink()
    assert holders(ONE) == set()
    (found,) = cache.holders(TWO)
    assert found[1] == replace(found[1], source="org/a")


def test_the_manifests_of_a_revision_are_known_whoever_wrote_them(cache: CacheDir) -> None:
    def at(revision: str) -> set[str]:
        return {key for key, _ in cache.at_revision(revision)}

    cache.write_manifest_at(KEYS["a"], first := manifest("org/a", ONE))
    cache.write_manifest_at(KEYS["b"], replace(manifest("org/b", TWO), revision=first.revision))
    assert at(first.revision) == set(KEYS.values())
    other = CacheDir(cache.root, cache.trusted_uids)
    other.write_manifest_at(KEYS["b"], replace(manifest("org/b", TWO), revision="c" * 40))
    assert (at(first.revision), at("c" * 40)) == ({KEYS["a"]}, {KEYS["b"]})
    cache.manifest_path(KEYS["a"]).unlink()
    assert at(first.revision) == set()
    assert at("") == set()


def test_a_cache_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    cache = CacheDir(tmp_path / "none")
    assert list(cache.published()) == []
    assert cache.holders(ONE) == []
    assert cache.manifest_keys() == []
