"""Admission: before the first byte of described files comes, there is room and leave for all.

What a file will take is known where its origin says its size beforehand, as the Hub does. What is
here already, under this name or another, takes nothing. A file of unknown size claims its room
when its first answer says it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from craftcached.fetch.disk_space import staged_bytes
from craftcached.fetch.partial_file import Names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from craftcache.cache.manifest import FileRecord
    from craftcached.fetch.disk_space import DiskSpace, ModelClaim
    from craftcached.store.store import Store

    from .description import DescribedFile, Description

__all__ = ["FetchAdmission", "UserBudgets"]


class UserBudgets(Protocol):
    """What each user may have fetched; see budgets.Budgets."""

    def fetching(
        self, uid: int | None, size: int, written: Callable[[], int], *, source: str
    ) -> AbstractAsyncContextManager[None]:
        """A context in which so many bytes are fetched for a user."""
        ...


class FetchAdmission:
    """Admits described files to be fetched; an Admission. Has no state.

    Args:
        space: The ledger of the room that files take which are not published yet.
        store: The published models.
        staging: The fetch engine's directory of partial files.
        budgets: What each user may have fetched.
    """

    def __init__(
        self, *, space: DiskSpace, store: Store, staging: Path, budgets: UserBudgets
    ) -> None:
        self._space = space
        self._store = store
        self._staging = staging
        self._budgets = budgets

    @asynccontextmanager
    async def __call__(self, description: Description) -> AsyncIterator[ModelClaim]:
        """A context in which the files may be fetched, and their room is theirs.

        Raises:
            StorageFull: They do not fit; nothing was evicted.
            BudgetExceeded: The user has no more bytes on this day.
        """
        files = await self._store.lock.healed(  # an administrator may have emptied the cache
            lambda: {
                file.remote.key: sizes
                for file in (*description.files, *description.needed_files)
                if (sizes := self._sizes(file)) is not None
            }
        )
        source = description.source.shown
        wanted = sum(lacking for lacking, _ in files.values())
        async with (
            self._space.claiming(files, source=source) as claim,
            self._budgets.fetching(description.for_uid, wanted, claim.written, source=source),
        ):
            yield claim

    def _sizes(self, file: DescribedFile) -> tuple[int, int] | None:
        """Bytes that a file lacks, as far as is known, and that it has in staging; blocks.

        None where it need not be fetched.
        """
        if self._is_here(file):
            return None
        names = Names.of(self._staging, file.remote.key)
        present = staged_bytes(names.part)
        return max(0, (file.promise.size or 0) - present), present

    def _is_here(self, file: DescribedFile) -> bool:
        """Whether a file is cached, as far as can be seen without hashing it."""
        cache = self._store.cache
        if file.current is not None:
            return cache.is_intact(file.current)
        size, digest = file.promise.size, file.promise.digest
        if file.blob is not None:
            blob = cache.hub_tree(file.blob.source.repo_id).blob(file.blob.etag)
            if blob.is_file() and blob.stat().st_size == size:
                return True
        # A file whose digest has a stamp was here once; most were not.
        if digest is None or digest.algorithm != "sha256":
            return False
        return cache.stamps.path(digest.hex).exists() and any(
            record.sha256 == digest.hex and self._is_own(record)
            for _, manifest in cache.holders(digest.hex, ours=True)
            for record in manifest.files
        )

    def _is_own(self, record: FileRecord) -> bool:
        """Whether a file is here to be linked; one of another daemon's cache would be copied."""
        cache = self._store.cache
        return not cache.is_owners(record) and cache.is_intact(record)
