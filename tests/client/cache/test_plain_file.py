"""A pipe in the place of a file: nobody waits for who never writes to it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.cache_format import check_format
from craftcache.cache.directory import CacheDir
from craftcache.cache.plain_file import IS_NO_FILE, read_plain
from craftcache.cache.stamps import FileStamp
from craftcache.cache.underway import underway
from craftcached.fetch.journal import read_record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIGEST = "a" * 64

READS: dict[str, tuple[Callable[[CacheDir], Path], Callable[[CacheDir], object]]] = {
    "a manifest": (
        lambda cache: cache.manifest_path(DIGEST),
        lambda cache: cache.manifest_at(DIGEST),
    ),
    "an index": (
        lambda cache: cache.index_path(DIGEST),
        lambda cache: cache.vouched_index(DIGEST),
    ),
    "stamps": (
        lambda cache: cache.stamps.path(DIGEST),
        lambda cache: cache.stamps.has(DIGEST, os.stat("/")) or None,
    ),
    "a ref": (
        lambda cache: cache.hub_tree("org/m").root / "refs" / "main",
        lambda cache: cache.hub_tree("org/m").commit_of("main"),
    ),
    "the format": (lambda cache: cache.private / "format.json", check_format),
    "what is under way": (
        lambda cache: cache.private / "underway" / f"{DIGEST}-{'b' * 40}.json",
        lambda cache: next(underway(cache), None),
    ),
    "a journal": (
        lambda cache: cache.staging / "x.journal",
        lambda cache: read_record(cache.staging / "x.journal", "boot"),
    ),
}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
@pytest.mark.parametrize("what", READS)
def test_what_is_no_file_is_none(tmp_path: Path, what: str, make: Callable[[Path], None]) -> None:
    cache = CacheDir(tmp_path / "cache", frozenset({os.geteuid()}))
    cache.create()
    place, read = READS[what]
    path = place(cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    assert read(cache) is None


def test_what_stands_in_a_files_place_is_an_error_that_says_so(tmp_path: Path) -> None:
    for make in (os.mkfifo, os.mkdir):
        place = tmp_path / make.__name__
        make(place)
        with pytest.raises(OSError, match=make.__name__) as caught:
            read_plain(place, 10)
        assert caught.value.errno in IS_NO_FILE
    file = tmp_path / "file"
    file.write_bytes(b"content")
    assert read_plain(file, 3) == b"con"
    assert FileStamp.of(file.stat()).size == len(read_plain(file, 100))
