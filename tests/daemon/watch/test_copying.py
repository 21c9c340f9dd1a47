"""The copy: of exactly what was seen, or none."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from craftcache.digests import hash_file
from craftcached.watch.copying import FilesChanged, copy_pair
from craftcached.watch.snapshot import Target, look
from tests.support.watching import content, write, write_pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def export(tmp_path: Path) -> Path:
    write_pair(tmp_path / "e", 1)
    return tmp_path / "e"


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


def test_both_files_are_copied_and_hashed(export: Path, staging: Path) -> None:
    target = Target.of(str(export))
    copied = copy_pair(target, None, look(target), staging, lambda: False)
    for name, file in copied.items():
        assert file.path.read_bytes() == (export / name).read_bytes()
        assert file.digests == hash_file(export / name)
        assert file.path.stat().st_ino != (export / name).stat().st_ino


def test_a_file_of_many_chunks_is_copied_whole(export: Path, staging: Path) -> None:
    write(export, "lm", os.urandom(9 * 1024 * 1024 + 17))
    target = Target.of(str(export))
    copied = copy_pair(target, None, look(target), staging, lambda: False)
    name = "state_dict.bin"
    assert copied[name].digests == hash_file(export / name) == hash_file(staging / name)


def overwrites(export: Path) -> None:
    write(export, "compression", content("compression", 2))


def replaces(export: Path) -> None:
    (export / "new").write_bytes(content("lm", 2))
    os.replace(export / "new", export / "state_dict.bin")


def removes(export: Path) -> None:
    (export / "state_dict.bin").unlink()


def links(export: Path) -> None:
    os.rename(export / "compression_state_dict.bin", export / "kept")
    os.symlink(export / "kept", export / "compression_state_dict.bin")


WRITERS = [overwrites, replaces, removes, links]


@pytest.mark.parametrize("writer", WRITERS)
def test_what_changed_before_the_copy_is_refused(
    export: Path, staging: Path, writer: Callable[[Path], None]
) -> None:
    target = Target.of(str(export))
    seen = look(target)
    writer(export)
    with pytest.raises((FilesChanged, OSError)):
        copy_pair(target, None, seen, staging, lambda: False)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
@pytest.mark.parametrize("writer", WRITERS)
def test_what_changes_during_the_copy_is_refused(
    export: Path, staging: Path, writer: Callable[[Path], None], chunk: int
) -> None:
    """The question that is asked between chunks is where the writer comes in."""
    target = Target.of(str(export))
    asked = 0

    def write_meanwhile() -> bool:
        nonlocal asked
        asked += 1
        if asked == chunk:
            writer(export)
        return False

    with pytest.raises((FilesChanged, OSError)):
        copy_pair(target, None, look(target), staging, write_meanwhile)
    assert asked >= chunk


def test_a_copy_gives_up_when_told_to(export: Path, staging: Path) -> None:
    target = Target.of(str(export))
    with pytest.raises(FilesChanged):
        copy_pair(target, None, look(target), staging, lambda: True)
