"""The parts that keep models in the cache or let them go, as one value for who needs several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .evictor import Evictor
    from .holds import Holds
    from .last_use import LastUse
    from .pins import Pins
    from .survey import Surveyor

__all__ = ["EvictionParts"]


@dataclass(frozen=True, slots=True)
class EvictionParts:
    """Pins, holds, last uses, survey and evictor: passed around together.

    Attributes:
        pins: The models that are neither evicted nor removed.
        holds: The models that are not evicted for a while, by users' word.
        uses: The time at which each model was last used.
        surveyor: Knows which models stay, and is told which a request needs.
        evictor: Frees space in the cache.
    """

    pins: Pins
    holds: Holds
    uses: LastUse
    surveyor: Surveyor
    evictor: Evictor

    def keys(self) -> frozenset[str]:
        """Keys of the models of which somebody has said that they stay; see is_kept."""
        return self.pins.keys | {hold.key for hold in self.holds.all()}

    def is_kept(self, key: str) -> bool:
        """Whether somebody has said that a model stays: it is pinned, or held for a while."""
        return self.pins.find(key) is not None or self.holds.until(key) is not None
