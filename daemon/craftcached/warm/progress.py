"""Progress of work that several requests may share, told to each as progress of its own source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from craftcache.wire import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.sources import RemoteSource
    from craftcache.wire import State

__all__ = ["SourceProgress"]


@dataclass(frozen=True, slots=True)
class SourceProgress:
    """How far the work for one source has come, and who hears of it.

    Attributes:
        source: The source that progress is reported of.
        report: Called with each progress; must not block.
    """

    source: RemoteSource
    report: Callable[[Progress], None]

    def tell(self, file: str | None, done: int, total: int | None, state: State) -> None:
        """Report the state of one file, or with None of the source; sizes are in bytes."""
        self.report(Progress(self.source.shown, file, done, total, state))

    def relay(self, filename: str) -> Callable[[Progress], None]:
        """A listener to shared work: another source, or another name of the file, began it."""

        def report(progress: Progress) -> None:
            self.report(replace(progress, source=self.source.shown, file=filename))

        return report

    def heard_by(self, listener: Callable[[Progress], None]) -> SourceProgress:
        """The same progress, with ``listener`` called before whoever hears of it already."""

        def report(progress: Progress) -> None:
            listener(progress)
            self.report(progress)

        return replace(self, report=report)
