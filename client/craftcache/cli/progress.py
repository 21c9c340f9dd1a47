"""Progress on stderr: one bar a file on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

import click

from craftcache.amounts import size_text

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import TaskID
    from typing_extensions import Self

    from craftcache.wire import Progress

__all__ = ["Display", "make_display"]

LINE_EVERY = 0.1
"""Share of a file after which a plain line is printed again."""

LINE_BYTES = 256 * 1024 * 1024
"""Bytes after which a plain line is printed again where the total is not known."""


class Display(Protocol):
    """Shows how far requests have come, while it is entered; for one thread."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def report(self, progress: Progress) -> None:
        """Take note of a step."""
        ...


def make_display(*, quiet: bool) -> Display:
    """The display that suits stderr; none at all if ``quiet``."""
    if quiet:
        return _Nothing()
    return _Bars() if sys.stderr.isatty() else _Lines()


class _Nothing:
    """For programs that read JSON."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def report(self, progress: Progress) -> None:
        pass


class _Lines(_Nothing):
    """A line for each new state of a file, and now and then while bytes come."""

    def __init__(self) -> None:
        self._printed: dict[tuple[str, str | None], tuple[str, int]] = {}

    def report(self, progress: Progress) -> None:
        key = (progress.source, progress.file)
        step = (progress.state, _step(progress))
        if self._printed.get(key) != step:
            self._printed[key] = step
            click.echo(_line(progress), err=True)


class _Bars(_Nothing):
    """A bar for each file, with sizes and rate."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def report(self, progress: Progress) -> None:
        if progress.file is None:
            return
        key = (progress.source, progress.file)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(_name(progress), total=None, state="")
        self._bars.update(
            self._tasks[key],
            completed=progress.done,
            total=progress.total,
            state=progress.state,
        )


def _step(progress: Progress) -> int:
    """Grows by one each time that a plain line is due."""
    if progress.total:
        return int(progress.done / progress.total / LINE_EVERY)
    return progress.done // LINE_BYTES


def _line(progress: Progress) -> str:
    line = f"{_name(progress)}: {progress.state}"
    if progress.file is None:
        return line
    total = f" of {size_text(progress.total)}" if progress.total is not None else ""
    return f"{line} {size_text(progress.done)}{total}"


def _name(progress: Progress) -> str:
    return f"{progress.source} {progress.file}" if progress.file else progress.source
