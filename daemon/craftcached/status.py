"""A published model at one moment, as both sockets show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from craftcache.cache.manifest import Manifest
    from craftcache.wire import CachedModel

__all__ = ["ModelState"]


@dataclass(frozen=True, slots=True)
class ModelState:
    """A published model, and how it is held.

    Attributes:
        manifest: The model's manifest.
        model: The model as a load would serve it, with its pin.
    """

    manifest: Manifest
    model: CachedModel
