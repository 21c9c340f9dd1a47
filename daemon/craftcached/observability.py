"""What the daemon sees of itself: its events, and all that is made of them for people and tools."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from .absences import Absences
from .counts import Counts
from .events import Events
from .job_log import Refusals, log_job
from .models_here import ModelsHere
from .processes import Processes

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.wire import NotWarm

__all__ = ["Observability"]


@dataclass(frozen=True, slots=True)
class Observability:
    """The parts by which a daemon observes itself; they change on the event loop only.

    Attributes:
        events: What happens.
        counts: How much has happened.
        absences: Why models are not warm, from what has happened.
        models_here: Which models are in the cache, and which are lost.
        processes: Who was handed which model.
        refusals: The log of requests that are answered by an error.
    """

    events: Events
    counts: Counts
    absences: Absences
    models_here: ModelsHere
    processes: Processes
    refusals: Refusals

    @classmethod
    def of(cls, root: Path, processes: Processes | None = None) -> Observability:
        """A new one, whose parts hear of all events.

        Args:
            root: The cache directory.
            processes: Who was handed which model.
        """
        observability = cls(
            Events(), Counts(), Absences(), ModelsHere(root), processes or Processes(), Refusals()
        )
        for observer in (
            observability.counts.hear,
            observability.absences.hear,
            observability.models_here.hear,
            log_job,
        ):
            observability.events.observe(observer)
        return observability

    def not_warm(self) -> list[NotWarm]:
        """What is known of models that are not warm, newest first; each is told of once."""
        lost = [each for each in self.models_here.lost() if each.source not in self.absences]
        return sorted([*self.absences.newest(), *lost], key=attrgetter("at"), reverse=True)

    def not_warm_count(self) -> int:
        """Number of those."""
        lost = self.models_here.lost_sources()
        return len(self.absences) + sum(source not in self.absences for source in lost)

    def forget(self, source: str) -> bool:
        """Say no more of a source that is not warm; returns whether anything was said of it."""
        was_lost = self.models_here.forget(source)
        return self.absences.forget(source) or was_lost
