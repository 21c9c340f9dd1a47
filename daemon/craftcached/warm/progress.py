"""Progress of work that several requests may share, reported to each under its own source."""

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
    """A reporter of the progress of the work for one source.

    Attributes:
        source: The source that progress is reported under.
        report: Called with each progress; must not block.
    """

    source: RemoteSource
    report: Callable[[Progress], None]

    def tell(self, file: str | None, done: int, total: int | None, state: State) -> None:
        """Report the state of one file, or with None of the source; sizes are in bytes."""
        self.report(Progress(self.source.shown, file, done, total, state))

    def relay(self, filename: str) -> Callable[[Progress], None]:
        """A listener that reports shared work under this source and under this name of the file."""

        def report(progress: Progress) -> None:
            self.report(replace(progress, source=self.source.shown, file=filename))

        return report

    def heard_by(self, listener: Callable[[Progress], None]) -> SourceProgress:
        """A copy of this reporter that calls ``listener`` first."""

        def report(progress: Progress) -> None:
            listener(progress)
            self.report(progress)

        return replace(self, report=report)
