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
        manifest: What it consists of.
        model: What a load of it would serve, and what keeps it.
    """

    manifest: Manifest
    model: CachedModel
