"""What the daemon sees of itself: its events, and all that is made of them for people and tools."""

from __future__ import annotations

from dataclasses import dataclass

from .absences import Absences
from .counts import Counts
from .events import Events
from .job_log import Refusals, log_job
from .processes import Processes

__all__ = ["Observability"]


@dataclass(frozen=True, slots=True)
class Observability:
    """The parts by which a daemon observes itself; they change on the event loop only.

    Attributes:
        events: What happens.
        counts: How much has happened.
        absences: Why models are not warm.
        processes: Who was handed which model.
        refusals: The log of requests that are answered by an error.
    """

    events: Events
    counts: Counts
    absences: Absences
    processes: Processes
    refusals: Refusals

    @classmethod
    def of(cls, processes: Processes | None = None) -> Observability:
        """A new one, whose parts hear of all events."""
        observability = cls(Events(), Counts(), Absences(), processes or Processes(), Refusals())
        for observer in (observability.counts.hear, observability.absences.hear, log_job):
            observability.events.observe(observer)
        return observability
