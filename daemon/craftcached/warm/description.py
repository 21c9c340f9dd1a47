"""What passes from one step of a warm to the next.

    Wanted -> Description -> VerifiedFiles -> Manifest

All are values: a step changes none of what it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from craftcache.sources import HubSource, UrlSource

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from craftcache.cache.manifest import FileRecord
    from craftcache.cache.publish import Verified
    from craftcache.digests import Promise
    from craftcached.fetch import RemoteFile

__all__ = [
    "FetchedSource",
    "Wanted",
    "HubBlob",
    "DescribedFile",
    "Description",
    "VerifiedFiles",
]

FetchedSource: TypeAlias = HubSource | UrlSource
"""A source whose bytes come over the network."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files of a source a warm is for, and how new they must be.

    Attributes:
        source: The source.
        filenames: Names of its files; one at least.
        refresh: Whether its origin is asked for something newer than what is published.
        as_need: Whether another model needs it, and nobody asked for it by name.
    """

    source: FetchedSource
    filenames: tuple[str, ...]
    refresh: bool
    as_need: bool = False


@dataclass(frozen=True, slots=True)
class HubBlob:
    """The name of a file's bytes in huggingface_hub's cache, which unmodified programs lock.

    Attributes:
        source: The repository.
        etag: The name: the ETag that the Hub gives.
    """

    source: HubSource
    etag: str


@dataclass(frozen=True, slots=True)
class DescribedFile:
    """One file as its origin describes it, before a byte of it is fetched.

    Attributes:
        filename: Name within the source.
        remote: Where the fetch engine opens its ranges, and what the origin promises of it.
        blob: Its name in huggingface_hub's cache; None where only craftcache keeps the file.
        current: Record of the published file, where the source still stands for the same bytes.
        is_unseen: Whether nothing of the file is published under the source's name. Then the same
            address under another signature counts, where the file's name promises its hash.
    """

    filename: str
    remote: RemoteFile
    blob: HubBlob | None = None
    current: FileRecord | None = None
    is_unseen: bool = False

    @property
    def promise(self) -> Promise:
        """What the origin promises of the file."""
        return self.remote.promise

    @property
    def key(self) -> Hashable:
        """The same for all files that one download serves: by content if promised, else by URL."""
        return self.remote.key, self.promise.digest


@dataclass(frozen=True, slots=True)
class Description:
    """What the files of a source are at one revision, by what its origin says.

    Attributes:
        source: The source.
        files: Its files, as far as they are wanted.
        commit: The repository's commit; empty for a source whose only revision is its files.
        is_named: Whether the origin has just said that the source's own revision is ``commit``.
    """

    source: FetchedSource
    files: tuple[DescribedFile, ...]
    commit: str = ""
    is_named: bool = False


@dataclass(frozen=True, slots=True)
class VerifiedFiles:
    """The files of a source at one revision, all of them verified: what is published as one.

    Attributes:
        source: The source.
        files: By name, each with the promise that it kept.
        commit: As in Description.
        is_named: As in Description.
    """

    source: FetchedSource
    files: Mapping[str, tuple[Verified, Promise]]
    commit: str = ""
    is_named: bool = False

    @property
    def bytes_fetched(self) -> int:
        """Bytes that came over the network for them."""
        return sum(verified.bytes_fetched for verified, _ in self.files.values())

    @property
    def bytes_reused(self) -> int:
        """Bytes that were in the cache before."""
        return sum(verified.bytes_reused for verified, _ in self.files.values())
