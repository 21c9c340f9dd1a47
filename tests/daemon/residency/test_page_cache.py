"""What the kernel says of files in memory, asked of a real kernel about real files."""

from __future__ import annotations

import multiprocessing
import os
import resource
from typing import TYPE_CHECKING

import pytest

from craftcache.errors import PolicyDenied
from craftcached.residency import page_cache

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 3 * page_cache.WINDOW + 12_345
NOBODY = 65534


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file on disk, of which nothing is in memory."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    descriptor = os.open(path, os.O_RDONLY)
    forget(descriptor)
    if page_cache.resident_bytes(descriptor) != 0:
        pytest.skip("this file system keeps its files in memory")
    yield descriptor
    os.close(descriptor)


def forget(descriptor: int) -> None:
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def test_reading_brings_all_of_a_file_into_memory(cold: int) -> None:
    steps: list[int] = []

    def go_on(done: int) -> bool:
        steps.append(done)
        return True

    page_cache.read_in(cold, go_on)
    # A kernel that reclaims what nobody has used yet may have begun to.
    assert page_cache.resident_bytes(cold) == pytest.approx(SIZE, rel=0.1)
    assert steps == [0, page_cache.WINDOW, 2 * page_cache.WINDOW, 3 * page_cache.WINDOW]


def test_reading_stops_when_told(cold: int) -> None:
    page_cache.read_in(cold, lambda done: done < page_cache.WINDOW)
    # The disk was asked one window ahead.
    assert page_cache.WINDOW <= (page_cache.resident_bytes(cold) or 0) <= 2 * page_cache.WINDOW


def test_both_ways_of_asking_agree(cold: int) -> None:
    os.preadv(cold, [bytearray(1024 * 1024)], page_cache.WINDOW)
    by_cachestat = page_cache._cachestat(cold)
    if by_cachestat is None:
        pytest.skip("the kernel has no cachestat")
    assert by_cachestat > 0
    assert page_cache._mincore(cold, SIZE) == by_cachestat


def test_an_empty_file_is_in_memory_whole(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with path.open("rb") as file:
        assert page_cache.resident_bytes(file.fileno()) == 0
        assert page_cache._mincore(file.fileno(), 0) == 0
        with page_cache.LockedFile(file.fileno(), lambda _: True) as locked:
            assert locked.size == 0


def test_locking_keeps_pages_that_would_be_dropped(cold: int) -> None:
    try:
        locked = page_cache.LockedFile(cold, lambda _: True)
    except PolicyDenied as denied:
        pytest.skip(str(denied))
    with locked:
        forget(cold)
        assert page_cache.resident_bytes(cold) == SIZE
    forget(cold)
    assert page_cache.resident_bytes(cold) == 0


def as_nobody(directory: str, results: multiprocessing.SimpleQueue[object]) -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    mine, others = (os.open(f"{directory}/{name}", os.O_RDONLY) for name in ("mine", "others"))
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    try:
        page_cache.LockedFile(mine, lambda _: True)
    except PolicyDenied as denied:
        results.put(str(denied))
    page_cache.lower_io_priority()
    mine_truth, others_truth = map(page_cache._is_told_the_truth, (mine, others))
    results.put((mine_truth, others_truth, page_cache.resident_bytes(mine)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_limits_and_truth_of_an_unprivileged_daemon(tmp_path: Path) -> None:
    for name in ("mine", "others"):
        (tmp_path / name).write_bytes(bytes(1024 * 1024))
        (tmp_path / name).chmod(0o444)
    os.chown(tmp_path / "mine", NOBODY, NOBODY)
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.SimpleQueue[object] = context.SimpleQueue()
    child = context.Process(target=as_nobody, args=(str(tmp_path), results))
    child.start()
    child.join()
    assert child.exitcode == 0
    denied = results.get()
    assert isinstance(denied, str)
    assert "RLIMIT_MEMLOCK is 65.5 kB (65536 bytes)" in denied
    assert "LimitMEMLOCK=infinity" in denied
    assert results.get() == (True, False, 1024 * 1024)
