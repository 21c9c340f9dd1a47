"""Waiting for files of another process, told by inotify and not by looking again and again."""

from __future__ import annotations

import contextlib
import queue
from typing import TYPE_CHECKING

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["appeared", "until"]


class _Told(FileSystemEventHandler):
    def __init__(self) -> None:
        self.changes: queue.SimpleQueue[FileSystemEvent] = queue.SimpleQueue()

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in ("opened", "closed_no_write"):  # our own looking is no change
            self.changes.put(event)


@contextlib.contextmanager
def _watching(directory: Path) -> Iterator[_Told]:
    told, observer = _Told(), Observer()
    observer.schedule(told, str(directory), recursive=True)
    observer.start()
    try:
        yield told
    finally:
        observer.stop()
        observer.join()


def until(condition: Callable[[], bool], *, below: Path) -> None:
    """Wait until something holds that changes only with the files below an existing directory."""
    with _watching(below) as told:
        while not condition():
            told.changes.get()


def appeared(
    directory: Path, pattern: str, *, is_meant: Callable[[Path], bool] = lambda _: True
) -> Path:
    """Wait for a file below ``directory`` whose name has that pattern, and that is the one meant.

    Args:
        directory: An existing one.
        pattern: As for ``Path.rglob``.
        is_meant: Whether such a file is the one that is waited for, as it is now.
    """
    with _watching(directory) as told:
        while True:
            for path in directory.rglob(pattern):
                if is_meant(path):
                    return path
            told.changes.get()
