"""A span of a file is read whole, from the page cache, through it or past it."""

from __future__ import annotations

import ctypes
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from craftcache.device.file_reader import FileReader
from craftcache.device.pieces import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 64 * PAGE_BYTES + 123
CONTENT = os.urandom(SIZE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state_dict.bin"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def drop(fd: int, offset: int = 0, length: int = 0) -> None:
    """Drop it from the page cache."""
    os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def cached_pages(fd: int) -> int:
    """How many of its pages are in the page cache, by asking the kernel, which reads none."""
    mapped = mmap.mmap(fd, SIZE, flags=mmap.MAP_PRIVATE)
    flags = (ctypes.c_ubyte * 65)()
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), flags) == 0
    return sum(flag & 1 for flag in flags)


def read(reader: FileReader, page: int = 0, pages: int = 65) -> bytes:
    """What is read of so many pages, from a page on."""
    memory = mmap.mmap(-1, pages * PAGE_BYTES)
    reader.read(memoryview(memory), page * PAGE_BYTES)
    return memory[: min(pages * PAGE_BYTES, SIZE - page * PAGE_BYTES)]


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("dropped", [(0, 0), (0, 20), (30, 0), (10, 20)])
def test_all_is_read_wherever_it_is(fd: int, direct: bool, dropped: tuple[int, int]) -> None:
    os.pread(fd, SIZE, 0)
    drop(fd, *(pages * PAGE_BYTES for pages in dropped))
    with FileReader(fd, SIZE, direct=direct) as reader:
        assert read(reader) == CONTENT
        assert read(reader, 7, 3) == CONTENT[7 * PAGE_BYTES : 10 * PAGE_BYTES]
        assert read(reader, 64, 1) == CONTENT[64 * PAGE_BYTES :]


def test_what_is_read_past_the_page_cache_does_not_come_into_it(fd: int) -> None:
    drop(fd)
    if cached_pages(fd):
        pytest.skip("nothing is dropped from the page cache of this file system")
    with FileReader(fd, SIZE, direct=True) as reader:
        assert read(reader) == CONTENT
        if not reader.direct_bytes:
            pytest.skip("this file system cannot be read past the page cache")
        assert reader.direct_bytes == SIZE
        assert not cached_pages(fd)


def test_what_others_will_want_comes_into_the_page_cache(fd: int) -> None:
    drop(fd)
    with FileReader(fd, SIZE, direct=False) as reader:
        assert read(reader) == CONTENT
        assert not reader.direct_bytes
    assert cached_pages(fd) == 65


def test_what_is_in_the_page_cache_is_taken_from_there(fd: int) -> None:
    os.pread(fd, SIZE, 0)
    with FileReader(fd, SIZE, direct=True) as reader:
        assert read(reader) == CONTENT
        assert not reader.direct_bytes


@pytest.mark.parametrize("direct", [True, False])
def test_a_file_in_memory_is_read(direct: bool) -> None:
    fd = os.memfd_create("checkpoint")
    try:
        os.pwrite(fd, CONTENT, 0)
        with FileReader(fd, SIZE, direct=direct) as reader:
            assert read(reader) == CONTENT
    finally:
        os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up the rights of root")
def test_a_file_that_may_not_be_opened_anew_is_read_by_its_descriptor(fd: int, path: Path) -> None:
    path.chmod(0o600)
    drop(fd)
    child = os.fork()
    if not child:
        try:
            os.setgid(65534)
            os.setuid(65534)
            with FileReader(fd, SIZE, direct=True) as reader:
                os._exit(0 if read(reader) == CONTENT and not reader.direct_bytes else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("end", [0, 5 * PAGE_BYTES, 5 * PAGE_BYTES + 7])
def test_a_file_that_became_shorter_is_an_error(
    path: Path, fd: int, direct: bool, cached: bool, end: int
) -> None:
    os.truncate(path, end)
    if not cached:
        drop(fd)
    with (
        FileReader(fd, SIZE, direct=direct) as reader,
        pytest.raises(EOFError, match=f"ends at byte {end}"),
    ):
        read(reader)


def test_several_threads_read_at_once(fd: int) -> None:
    drop(fd)
    with FileReader(fd, SIZE, direct=True) as reader, ThreadPoolExecutor(8) as pool:
        pages = list(range(65)) * 3
        for page, found in zip(
            pages, pool.map(lambda page: read(reader, page, 1), pages), strict=True
        ):
            assert found == CONTENT[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]


def test_it_keeps_no_descriptor(fd: int) -> None:
    before = os.listdir("/proc/self/fd")
    drop(fd)
    with FileReader(fd, SIZE, direct=True) as reader:
        read(reader)
    assert os.listdir("/proc/self/fd") == before
