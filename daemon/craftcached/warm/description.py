"""The values that pass from one step of a warm to the next.

    Wanted -> Description -> VerifiedFiles -> Manifest

All are immutable: no step changes its argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from craftcache.sources import NO_SELECTION, HubSource, UrlSource, wanted_files

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from craftcache.cache.manifest import FileRecord
    from craftcache.cache.publish import Verified
    from craftcache.digests import Promise
    from craftcache.locked import LockedRevision
    from craftcache.sources import Selection
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
        refresh: Whether its origin is asked for a newer revision than the published one.
        as_need: Whether it is warmed as a dependency of another model, not by its own name.
        selection: The selection that ``filenames`` are; false for files that were named.
        lock: What the files must be; None where that is what the origin says.
        commit: The commit of the Hub that is meant; empty to be asked for, or found in the cache.
        is_named: Whether ``commit`` is what the source's own revision is to name.
        for_uid: User for whom it is fetched; None where the daemon does it by itself.
        with_needs: Whether what it needs is brought after it.
    """

    source: FetchedSource
    filenames: tuple[str, ...]
    refresh: bool
    as_need: bool = False
    selection: Selection = NO_SELECTION
    lock: LockedRevision | None = None
    commit: str = ""
    is_named: bool = False
    for_uid: int | None = None
    with_needs: bool = False

    @classmethod
    def of(
        cls,
        source: FetchedSource,
        filenames: Sequence[str],
        selection: Selection,
        lock: LockedRevision | None,
        *,
        refresh: bool,
    ) -> Wanted:
        """What a request asks for: files by their names, by patterns, or by a lock."""
        if lock is None:
            return cls(source, wanted_files(source, filenames), refresh, selection=selection)
        # A lock's commit is what its source's revision is to name on this node from now on.
        return cls(
            source,
            lock.names,
            refresh=False,
            as_need=lock.needed_only,
            lock=lock,
            commit=lock.revision if isinstance(source, HubSource) else "",
            is_named=True,
        )

    @property
    def named(self) -> tuple[str, ...]:
        """Names of the files that were asked for as checkpoints, by their own names."""
        return () if self.selection or self.lock else self.filenames


@dataclass(frozen=True, slots=True)
class HubBlob:
    """The name of a file's bytes in huggingface_hub's cache, which unmodified programs lock.

    Attributes:
        source: The repository.
        etag: Name of the blob: the ETag that the Hub gives.
    """

    source: HubSource
    etag: str


@dataclass(frozen=True, slots=True)
class DescribedFile:
    """One file as its origin describes it, before a byte of it is fetched.

    Attributes:
        filename: Name within the source.
        remote: Address that the fetch engine asks for ranges, and the origin's promise.
        blob: Its name in huggingface_hub's cache; None where only craftcache keeps the file.
        current: Record of the published file, if the source still has the same bytes.
        is_unseen: Whether no version of the file is published under the source's name. Then the
            same address under another signature is used, if the file's name promises its hash.
    """

    filename: str
    remote: RemoteFile
    blob: HubBlob | None = None
    current: FileRecord | None = None
    is_unseen: bool = False

    @property
    def promise(self) -> Promise:
        """Size and digest that the origin promises, as far as it does."""
        return self.remote.promise

    @property
    def key(self) -> Hashable:
        """Key that is equal for all files that one download serves: by digest, else by URL."""
        return self.remote.key, self.promise.digest


@dataclass(frozen=True, slots=True)
class Description:
    """The files of a source at one revision, as its origin describes them.

    Attributes:
        source: The source.
        files: The wanted ones of its files.
        commit: The repository's commit; empty for a URL, which has no revisions but its content.
        is_named: Whether the origin has just said that the source's own revision is ``commit``.
        for_uid: As in Wanted.
        needed_files: Files of what it needs, as far as that is known already; they are admitted
            with it, and brought after it.
        mirror: Address of the commit's files at the mirror that described them in the place of the
            origin; empty where that did.
    """

    source: FetchedSource
    files: tuple[DescribedFile, ...]
    commit: str = ""
    is_named: bool = False
    for_uid: int | None = None
    needed_files: tuple[DescribedFile, ...] = ()
    mirror: str = ""


@dataclass(frozen=True, slots=True)
class VerifiedFiles:
    """The files of a source at one revision, all verified, to be published as one model.

    Attributes:
        source: The source.
        files: Verified files by name, each with the promise that it was verified against.
        commit: As in Description.
        is_named: As in Description.
        mirror: As in Description.
    """

    source: FetchedSource
    files: Mapping[str, tuple[Verified, Promise]]
    commit: str = ""
    is_named: bool = False
    mirror: str = ""

    @property
    def bytes_fetched(self) -> int:
        """Bytes downloaded for these files."""
        return sum(verified.bytes_fetched for verified, _ in self.files.values())

    @property
    def bytes_reused(self) -> int:
        """Bytes of these files that were on this node before."""
        return sum(verified.bytes_reused for verified, _ in self.files.values())
