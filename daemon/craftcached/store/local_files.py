"""Bytes that this node has already, in whatever form: another model's, or another program's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from craftcache.cache.durable import staging_name
from craftcache.cache.placing import TreeObstacle, copy_to, link_or_copy
from craftcache.cache.publish import Verified
from craftcache.cache.recorded import contradicted
from craftcache.cache.signed_urls import same_file
from craftcache.cache.stamps import FileStamp
from craftcache.digests import Digest, Digests, HashedFile, Promise, Stamp
from craftcache.errors import CraftcacheError
from craftcache.full_disk import FULL, storage_full

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.sources import HubSource
    from craftcached.threads import Threads

__all__ = ["LocalFiles", "obstacles_named"]

log = logging.getLogger("craftcached")

SMALL_FILES_BYTES = 1024 * 1024
"""Disk space that the indexes, manifest and links of one model need at most, about."""


class LocalFiles:
    """Finds and hashes files that need not be fetched; changes nothing but staging and stamps.

    Args:
        cache: The cache directory.
        hashing: Threads that hash.
    """

    def __init__(self, cache: CacheDir, hashing: Threads) -> None:
        self._cache = cache
        self._hashing = hashing

    def as_verified(self, record: FileRecord) -> Verified:
        """A published, intact file as a verified one, with no bytes fetched."""
        digests, path = Digests(record.size, record.sha256), self._cache.path(record)
        try:
            stamp = Stamp.of(path.stat())
        except FileNotFoundError:  # removed just now
            stamp = record.stamp
        file = HashedFile(path, digests, stamp)
        return Verified(file, record.etag, 0, record.size, record.verified_at)

    def check(self, record: FileRecord, *, anew: bool = False) -> Verified | Stamp | None:
        """A file if it is right, its stamp if its hash is wrong, None if it cannot be read."""
        if not anew and self._cache.is_intact(record):
            return self.as_verified(record)
        try:
            hashed = self._cache.hash_again(record)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("%s cannot be verified: %s", record.path, error)
            return None
        if hashed.digests.sha256 != record.sha256:
            return hashed.stamp
        return Verified(hashed, record.etag, 0, hashed.digests.size)

    async def published_at(
        self, source: HubSource, commit: str, filenames: Iterable[str]
    ) -> Manifest | None:
        """An intact manifest of the same repository, under whichever name, at that commit.

        One that leads to another daemon's cache is none: publishing its files would copy them, and
        nobody has claimed the room.
        """
        names = tuple(filenames)

        def search() -> Manifest | None:
            for _, manifest in self._cache.published(ours=True):
                if manifest.source.partition("@")[0] != source.repo_id:
                    continue
                records = manifest.select(source, names)
                if manifest.revision != commit or any(map(self._cache.is_owners, manifest.files)):
                    continue
                if records is not None and all(map(self._cache.is_intact, records)):
                    return manifest
            return None

        return await asyncio.to_thread(search)

    async def find(self, sha256: str, directory: Path) -> Verified | None:
        """A verified file with that digest, from any published model; None if there is none.

        It is linked into ``directory``, the caller's part of staging, so that it stays even if the
        model that has it is removed meanwhile. A file of another daemon's cache is copied: a link
        would change the owner's file.

        Raises:
            StorageFull: There is no disk space for the copy.
        """
        with obstacles_named(self._cache.root):
            return await self._hashing.run(self._find, sha256, directory)

    def _find(self, sha256: str, directory: Path) -> Verified | None:
        holders = self._cache.holders(sha256, ours=True)
        records = (record for _, manifest in holders for record in manifest.files)
        same = (record for record in records if record.sha256 == sha256)
        return self._take(sorted(same, key=self._cache.is_owners), directory)

    async def find_signed(
        self, url: str, digest: Digest | None, directory: Path
    ) -> Verified | None:
        """The file of ``url`` that was fetched with another signature; see find and signed_urls.

        Files of another daemon's cache are left out: nobody has claimed room for a copy, as the
        size of such a file is known only when its origin answers.
        """

        def search() -> Verified | None:
            records = same_file(self._cache.published(ours=True), url, digest)
            own = (record for record in records if not self._cache.is_owners(record))
            return self._take(own, directory)

        return await self._hashing.run(search)

    async def adopt(self, source: HubSource, etag: str, promise: Promise) -> Verified | None:
        """A blob that another program put into the Hub's tree, hashed; None if none is right."""
        tree = self._cache.hub_tree(source.repo_id)
        adopted = await self._hashing.run(tree.adopt, etag, promise)
        return None if adopted is None else Verified(adopted, etag, 0, adopted.digests.size)

    async def adopt_or_find(
        self, source: HubSource, etag: str, promise: Promise
    ) -> Verified | None:
        """Look for a Hub file by adopt, then by find, which links it into staging.

        Where neither finds it, this checks that its blob and links can be created in the Hub's
        tree. All of it is one call to a thread, because it is made for each file that is warmed.

        Raises:
            StorageFull: There is no disk space for a copy, or for the repository's directories.
            CraftcacheError: A file or link in the Hub's tree is in the way; the message names it.
        """

        def search() -> Verified | None:
            tree, digest = self._cache.hub_tree(source.repo_id), promise.digest
            if (adopted := tree.adopt(etag, promise)) is not None:
                return Verified(adopted, etag, 0, adopted.digests.size)
            is_known = digest is not None and digest.algorithm == "sha256"
            found = self._find(digest.hex, self._cache.staging) if digest and is_known else None
            if found is not None:
                return replace(found, etag=etag)
            tree.check_place()
            return None

        with obstacles_named(self._cache.root):
            return await self._hashing.run(search)

    async def adopt_snapshot(
        self, source: HubSource, commit: str, filenames: Iterable[str]
    ) -> dict[str, tuple[Verified, Promise]] | None:
        """The files of one commit in the Hub's tree, hashed; None if any is wrong or missing.

        A blob's name there is its digest, so the Hub need not be asked. Which file a blob is only
        a link says, so one of which another sha256 is recorded is wrong.
        """
        tree = self._cache.hub_tree(source.repo_id)
        etags = {filename: tree.etag_of(commit, filename) or "" for filename in filenames}
        if not all(map(Digest.from_hub_etag, etags.values())):  # nothing is hashed in vain
            return None
        files: dict[str, tuple[Verified, Promise]] = {}
        for filename, etag in etags.items():
            promise = Promise(digest=Digest.from_hub_etag(etag))
            verified = await self.adopt(source, etag, promise)
            if verified is None:
                return None
            files[filename] = verified, promise
        found = {filename: verified.digests.sha256 for filename, (verified, _) in files.items()}
        wrong = await asyncio.to_thread(contradicted, self._cache, source.repo_id, commit, found)
        if wrong:
            log.warning("%s: the links of %s lead to other files", source.shown, ", ".join(wrong))
            return None
        return files

    def _take(self, records: Iterable[FileRecord], directory: Path) -> Verified | None:
        """The first of these files whose hash is right, linked into ``directory``."""
        for record in records:
            verified = self.check(record)
            if isinstance(verified, Verified):
                with contextlib.suppress(FileNotFoundError):  # removed just now
                    return self._taken(verified, directory)
        return None

    def _taken(self, verified: Verified, directory: Path) -> Verified:
        """A published file under a name of our own in ``directory``."""
        name, sha256 = directory / staging_name(), verified.digests.sha256
        if verified.path.is_relative_to(self._cache.owner):
            copied = copy_to(verified.file, name)
            self._cache.stamps.record(sha256, FileStamp.of(copied.path.stat()))
            return replace(verified, file=copied)
        with self._cache.stamps.keeping(sha256, verified.path):
            taken = link_or_copy(verified.file, name)
        if not taken.path.samefile(verified.path):
            self._cache.stamps.record(sha256, FileStamp.of(taken.path.stat()))
        return replace(verified, file=taken)


@contextlib.contextmanager
def obstacles_named(root: Path) -> Iterator[None]:
    """A context in which something is written: what people can mend is told in words.

    Args:
        root: Directory that is written to, where an error names no file.

    Raises:
        StorageFull: There is no disk space for it.
        CraftcacheError: Something is in the way in the Hub's tree. A bare one, as that is the
            daemon's own fault: a worker may still fetch for itself.
    """
    try:
        yield
    except TreeObstacle as error:
        raise CraftcacheError(str(error), hint="Mount what it leads to, or move it away") from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        # The error names the file, which may be on another file system that a link leads to.
        named = Path(error.filename) if error.filename else root
        place = next(path for path in (named, *named.parents) if path.exists())
        raise storage_full(
            place, SMALL_FILES_BYTES, error=error, least=SMALL_FILES_BYTES
        ) from error
