"""The input and the result of a fetch: the interface of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from craftcache.digests import Digests, Promise, Stamp

__all__ = ["RemoteFile", "Fetched", "Priority", "Fetcher"]


class Priority(IntEnum):
    """Priority when connections are scarce; the lower number goes first."""

    WAITED_FOR = 0
    """A worker waits in ``load``."""
    BACKGROUND = 1
    """A warm, whether somebody waits for its end or not."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file at its origin, at one pinned version.

    Attributes:
        source: The source as the user may see it; every error names it.
        url: URL of each first request. May redirect to a signed address elsewhere, which is
            asked for again here when it expires.
        promise: Size, digest and validator, as far as the origin gave them beforehand.
        key: The name under which partial bytes are kept in staging; the same key means the same
            content, so that a restart may resume. Letters and digits only.
        headers: Credentials; sent to ``url``'s own origin (scheme, host and port) and no other.
        attempt: Number of this attempt at bytes that keep the promise. From the second on,
            connections are new, and caches on the way are asked to ask the origin.
        public_only: Whether a user chose the address, so that it and what it redirects to must be
            public, as far as the policy excepts no host.
        is_origin_away: Whether the origin did not answer when the file was described, so that
            mirrors are asked even for what only the origin would be asked for.
    """

    source: str
    url: str
    promise: Promise
    key: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    attempt: int = 1
    public_only: bool = False
    is_origin_away: bool = False


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetched file: complete, durable in staging and verified against its promise.

    Attributes:
        path: Path of the file in staging, fsynced, mode 0444, under a name of its own; the caller
            owns it, and renames, links or removes it.
        digests: Digests of all its bytes.
        stamp: Stamp of the file when all its bytes were there and hashed.
        etag: The strong validator that the origin sent with the bytes, unquoted, or None.
        bytes_fetched: Bytes that came over the network in this run.
        bytes_reused: Bytes that an earlier, interrupted run had left in staging.
    """

    path: Path
    digests: Digests
    stamp: Stamp
    etag: str | None
    bytes_fetched: int
    bytes_reused: int


class Fetcher(Protocol):
    """Brings remote files into staging, verified."""

    async def fetch(
        self,
        file: RemoteFile,
        *,
        priority: Priority,
        report: Callable[[int, int | None], None],
    ) -> Fetched:
        """Fetch one file; cancelling leaves staging resumable or empty.

        Args:
            file: The file to fetch.
            priority: Priority when connections are scarce.
            report: Called with the bytes present so far and the total, where known; never blocks.

        Raises:
            NotFound, AccessDenied, PolicyDenied, IntegrityError, StorageFull, Unavailable: Each
                names ``file.source``; ``retryable`` says whether a later try may help.
        """
        ...

    def hurry(self, key: str) -> None:
        """Raise the priority of the fetch that is running under ``key``, if one is."""
        ...
