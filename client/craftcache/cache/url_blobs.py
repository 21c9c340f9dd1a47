"""The blobs of URLs and watches, named by their sha256; the Hub's are HubTree's."""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING

from craftcache.digests import Digests, HashedFile, Stamp
from craftcache.logger import log

from .durable import make_directory, sync_directory
from .ownership import make_ours
from .placing import link_or_copy
from .stamps import FileStamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .stamps import Stamps

__all__ = ["BLOB_MODE", "UrlBlobs"]

BLOB_MODE = 0o444


class UrlBlobs:
    """The directory of these blobs; has no other state.

    Args:
        directory: The directory.
        staging: Directory of files before they have a final name; on the same file system.
        stamps: Stamps of the cache's verified files.
        is_ours: Returns whether a file with that stat can have been written by trusted users only.
        set_aside: Moves a file to quarantine; returns its path there, None if it is gone.
    """

    def __init__(
        self,
        directory: Path,
        staging: Path,
        stamps: Stamps,
        *,
        is_ours: Callable[[os.stat_result], bool],
        set_aside: Callable[[Path], Path | None],
    ) -> None:
        self.directory = directory
        self._staging = staging
        self._stamps = stamps
        self._is_ours = is_ours
        self._set_aside = set_aside

    def path(self, sha256: str) -> Path:
        """Path of the blob with that digest."""
        return self.directory / sha256

    def paths(self) -> Iterator[Path]:
        """All blobs, named by a manifest or not."""
        return self.directory.glob("*")

    def publish(self, file: HashedFile) -> HashedFile:
        """Give a verified file its final name; the caller still removes its own name for it.

        If a file with the same bytes has that name, that one is used and the new one is not
        needed; one with other bytes goes to quarantine.

        Returns:
            The file that has that name now, with its digests.

        Raises:
            IntegrityError: The file was changed after it was verified.
        """
        verified, sha256 = file.path, file.digests.sha256
        final = self.path(sha256)
        file.check_untouched(partial(self._stamps.has, sha256))
        make_directory(final.parent)
        if verified.is_relative_to(self._staging) and verified.stat().st_nlink == 1:
            os.chmod(verified, BLOB_MODE)
        while True:
            try:
                published = link_or_copy(file, final)
            except FileExistsError:
                if (present := self._present(final, sha256)) is not None:
                    return present
                aside = self._set_aside(final)
                log.warning("%s did not hold the bytes of its name; it is %s now", final, aside)
            else:
                sync_directory(final.parent)
                # As in HubTree.publish_blob.
                is_passing = published.stamp == file.stamp and verified.is_relative_to(
                    self._staging
                )
                self._stamps.record(sha256, FileStamp.of(final.stat()), is_passing=is_passing)
                return published

    def _present(self, path: Path, sha256: str) -> HashedFile | None:
        """The file at a blob's path; None if it is no file with that digest."""
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                return None
            if self._is_ours(status) and self._stamps.has(sha256, status):
                return HashedFile(path, Digests(status.st_size, sha256), Stamp.of(status))
            if not self._is_ours(status):
                make_ours(path, mode=BLOB_MODE)
            hashed = self._stamps.hash(path)
        except FileNotFoundError:
            return None
        return hashed if hashed.digests.sha256 == sha256 else None
