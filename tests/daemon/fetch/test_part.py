"""The partial file itself: writes of any shape, and what is found of it later."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from craftcache.digests import Digest, Promise
from craftcached.fetch.journal import Identity, PartRecord
from craftcached.fetch.partial_file import Names, PartialFile, find_record
from craftcached.fetch.spans import Span

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 5000
PROMISE = Promise(SIZE, Digest("sha256", "a" * 64))
NOTHING = PartRecord(Identity.of(PROMISE, size=SIZE, etag=None), (), ())


def test_a_block_of_many_tiny_chunks_is_written_in_place(tmp_path: Path) -> None:
    data = os.urandom(3000)
    part = PartialFile(Names.of(tmp_path, "k"), NOTHING, "boot")
    part.open()
    part.write(1000, [data[at : at + 1] for at in range(len(data))])
    part.close()
    assert part.path.read_bytes() == bytes(1000) + data + bytes(1000)
    record = find_record(Names.of(tmp_path, "k"), PROMISE, "boot")
    assert record is not None
    assert record.present == (Span(1000, 4000),)


def test_a_part_of_another_length_is_not_believed(tmp_path: Path) -> None:
    names = Names.of(tmp_path, "k")
    part = PartialFile(names, NOTHING, "boot")
    part.open()
    part.write(0, [b"x" * 100])
    part.close()
    os.truncate(names.part, SIZE - 1)
    assert find_record(names, PROMISE, "boot") is None


def test_a_link_in_the_place_of_a_part_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"x" * SIZE)
    target.chmod(0o444)
    names = Names.of(tmp_path, "k")
    names.part.symlink_to(target)
    assert find_record(names, PROMISE, "boot") is None
    part = PartialFile(names, None, "boot")
    part.open()
    part.write(0, [b"y"])
    part.close()
    assert target.read_bytes() == b"x" * SIZE
    assert names.part.read_bytes() == b"y"
