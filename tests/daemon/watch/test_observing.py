"""Hints: what somebody attends to is heard of, and nothing else."""

from __future__ import annotations

import os
import queue
import shutil
from typing import TYPE_CHECKING

import pytest

from craftcached.watch.inotify import Attention, InotifyObserver, WatchedPlace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Ear:
    """Somebody who attends to places, and the hints that come."""

    def __init__(self, observer: InotifyObserver) -> None:
        self._hints: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.attention: Attention = observer.attention(lambda: self._hints.put(None))

    def hears(self) -> None:
        """Wait for a hint, and forget those that came with it."""
        self._hints.get(timeout=10)
        self.forget()

    def forget(self) -> None:
        while not self._hints.empty():
            self._hints.get()

    @property
    def is_quiet(self) -> bool:
        return self._hints.empty()


@pytest.fixture
def observer() -> Iterator[InotifyObserver]:
    with InotifyObserver() as running:
        yield running


def place(path: Path) -> WatchedPlace:
    return WatchedPlace(str(path), path.stat().st_ino)


def test_writes_and_names_of_a_place_are_heard_of(
    observer: InotifyObserver, tmp_path: Path
) -> None:
    ear = Ear(observer)
    assert ear.attention.listen_to([place(tmp_path)])
    assert not ear.attention.listen_to([place(tmp_path)])
    assert ear.attention.blind_spot is None
    (tmp_path / "a").write_text("x")
    ear.hears()
    os.replace(tmp_path / "a", tmp_path / "b")
    ear.hears()
    (tmp_path / "b").unlink()
    ear.hears()


def test_where_only_names_matter_writes_are_no_hints(
    observer: InotifyObserver, tmp_path: Path
) -> None:
    (tmp_path / "log").touch()
    names, all_of_it = Ear(observer), Ear(observer)
    there = WatchedPlace.at(str(tmp_path))
    assert there is not None
    names.attention.listen_to([there])
    all_of_it.attention.listen_to([place(tmp_path)])
    (tmp_path / "log").write_text("x")
    all_of_it.hears()
    assert names.is_quiet
    (tmp_path / "new").mkdir()
    names.hears()


def test_only_the_name_that_matters_is_a_hint(observer: InotifyObserver, tmp_path: Path) -> None:
    one, other = Ear(observer), Ear(observer)
    for ear, name in ((one, "one"), (other, "other")):
        nearest = WatchedPlace.nearest(str(tmp_path / name))
        assert nearest is not None
        ear.attention.listen_to([nearest])
    (tmp_path / "other").mkdir()
    other.hears()
    assert one.is_quiet
    (tmp_path / "one").mkdir()
    one.hears()


def test_the_nearest_place_is_what_there_is_of_a_path(tmp_path: Path) -> None:
    nearest = WatchedPlace.nearest(str(tmp_path / "a" / "b" / "export"))
    assert nearest is not None
    assert (nearest.path, nearest.name) == (str(tmp_path), "a")


def test_a_directory_that_goes_is_a_hint_and_its_successor_another_place(
    observer: InotifyObserver, tmp_path: Path
) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    ear, before = Ear(observer), place(directory)
    ear.attention.listen_to([before])
    shutil.move(directory, tmp_path / "moved")
    ear.hears()
    directory.mkdir()
    assert place(directory) != before
    assert ear.attention.listen_to([place(directory)])
    ear.forget()
    (directory / "f").touch()
    ear.hears()
    shutil.rmtree(directory)
    ear.hears()
    ear.attention.close()


def test_what_is_attended_to_no_more_is_quiet(observer: InotifyObserver, tmp_path: Path) -> None:
    first, second = Ear(observer), Ear(observer)
    for ear in (first, second):
        ear.attention.listen_to([place(tmp_path)])
    first.attention.listen_to([])
    (tmp_path / "a").touch()
    second.hears()
    assert first.is_quiet
