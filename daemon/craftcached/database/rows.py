"""What the database remembers, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from craftcache.wire import Warm

__all__ = ["Hashing", "Hold", "Pin", "WarmJob"]


@dataclass(frozen=True, slots=True)
class WarmJob:
    """A queued warm: acknowledged to a caller who did not wait for it.

    Attributes:
        id: Number of the warm in the database.
        warm: The request. Its source may carry a signed query, so the database file is private.
        uid: User who asked for it first; None where that is not known.
    """

    id: int
    warm: Warm
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class Pin:
    """A model that stays until it is unpinned.

    Attributes:
        key: Key of the model's manifest.
        source: The source as shown to people, without secrets.
        is_locked: Whether the model's pages are locked in memory too.
        pinned_at: Time of pinning, in seconds since the epoch.
        expires_at: Time at which the pin ends by itself, in seconds since the epoch, or None.
    """

    key: str
    source: str
    is_locked: bool
    pinned_at: float
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """A user's word that a model is to stay for a while.

    Attributes:
        key: Key of the model's manifest.
        source: The source as shown to people, without secrets.
        uid: The user.
        expires_at: Time at which the hold ends, in seconds since the epoch.
    """

    key: str
    source: str
    uid: int
    expires_at: float


@dataclass(frozen=True, slots=True)
class Hashing:
    """The last time that a published file was hashed again.

    Attributes:
        path: Path of the file, relative to the cache directory.
        sha256: Digest that it was published with, in hex.
        hashed_at: Time of it, in seconds since the epoch.
        is_broken: Whether the file was wrong or missing then, and could not be mended.
    """

    path: str
    sha256: str
    hashed_at: float
    is_broken: bool
