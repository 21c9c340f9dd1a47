"""The result of a warm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from craftcache.cache.manifest import Manifest

__all__ = ["Warmed"]


@dataclass(frozen=True, slots=True)
class Warmed:
    """The result of a warm.

    Attributes:
        manifest: The manifest of the source as published now.
        bytes_fetched: Bytes downloaded for the source's own files, by this request or one that it
            shared the work with.
        bytes_reused: Bytes of its files that were on this node before, in whatever form.
        resident_bytes: Bytes of the files asked for that are in memory; None where that was not
            asked for, or is not known.
        previous: The manifest before this warm, if it has dependencies that this one lacks;
            else None.
        not_refreshed: Names of the dependencies that are cached, but whose origin could not be
            asked for a newer revision.
        held_until: Time until which it is held, in seconds since the epoch, or None.
    """

    manifest: Manifest
    bytes_fetched: int
    bytes_reused: int
    resident_bytes: int | None = None
    previous: Manifest | None = None
    not_refreshed: tuple[str, ...] = ()
    held_until: float | None = None
