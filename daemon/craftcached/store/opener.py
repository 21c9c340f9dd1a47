"""Opening of published files for workers: for reading, and through a read-only mount.

A process that was sent a descriptor can open ``/proc/self/fd/N`` anew, and root in a container may
then write to the file. A file that was opened through a read-only mount of the cache stays
read-only for it as well, so workers are served from below ``serve_dir`` where that is set.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from craftcache.cache.directory import CacheDir
from craftcache.cache.durable import staging_name
from craftcache.config import ConfigError
from craftcache.errors import CraftcacheError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from craftcache.cache.manifest import FileRecord, Manifest

    from .store import Store

__all__ = ["BlobOpener", "OpenedModel"]

_READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""A pipe in a blob's place is opened at once too, and has no verified file's stamp."""


@dataclass(slots=True)
class OpenedModel:
    """Verified files of a model, open for reading; close it when they have been handed over.

    Attributes:
        manifest: The model's manifest.
        records: Records of the files, in the order of the request.
        blobs: Descriptors of the blobs, one a record.
        indexes: Descriptors of the indexes, one a record.
    """

    manifest: Manifest
    records: tuple[FileRecord, ...]
    blobs: list[int] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All descriptors that are open."""
        return (*self.blobs, *self.indexes)

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.blobs, self.indexes = [], []


class BlobOpener:
    """Opens published files for workers.

    Args:
        store: The published models.
        serve_dir: A read-only mount of the cache directory; None opens the files in the cache
            directory itself, which trusts root in containers.
    """

    def __init__(self, store: Store, serve_dir: Path | None) -> None:
        cache = store.cache
        self._cache = cache
        self._indexes = store.indexes
        self._serve_dir = serve_dir
        self._served = cache if serve_dir is None else CacheDir(serve_dir, cache.trusted_uids)

    def check(self) -> None:
        """Check that ``serve_dir`` is a read-only mount of the cache.

        Raises:
            ConfigError: It shows other files, or can be written to.
        """
        if self._serve_dir is None:
            return
        name = staging_name()
        probe = self._cache.staging / name
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            # Nothing is written: that the file can be opened for writing is enough.
            os.close(os.open(self._served.staging / name, os.O_WRONLY | os.O_CLOEXEC))
        except FileNotFoundError as error:
            raise ConfigError(
                f"serve_dir {self._serve_dir} does not show the files of {self._cache.root}",
                hint=self._hint,
            ) from error
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        else:
            raise ConfigError(
                f"serve_dir {self._serve_dir} is mounted so that it can be written to",
                hint=self._hint,
            )
        finally:
            probe.unlink()

    def open(self, manifest: Manifest, records: Sequence[FileRecord]) -> OpenedModel | None:
        """Open published files; None if one, or its index, is missing or not as it was verified.

        A file is compared by its stamp. Its index is the one whose digest the manifest holds, from
        a sealed copy in memory.

        Args:
            manifest: The model's manifest.
            records: Records of the files.

        Raises:
            CraftcacheError: ``serve_dir`` does not show what the cache holds, read-only.
            OSError: There are no descriptors left.
        """
        opened = OpenedModel(manifest, tuple(records))
        try:
            is_intact = all(self._take(opened, record) for record in records)
            if self._serve_dir is not None:
                self._check_read_only(opened)
            if is_intact:
                return opened
        except FileNotFoundError:
            pass
        except BaseException:
            opened.close()
            raise
        opened.close()
        if self._serve_dir is not None and all(map(self._is_ready, records)):
            raise self._broken("lacks published files")
        return None

    def _take(self, opened: OpenedModel, record: FileRecord) -> bool:
        """Open one file and its index; returns whether both are what was verified."""
        blob = os.open(self._served.path_text(record), _READING)
        opened.blobs.append(blob)
        index = self._indexes.open(record.index_sha256)
        if index is None:
            return False
        opened.indexes.append(index)
        return self._cache.stamps.has(record.sha256, os.fstat(blob))

    def _is_ready(self, record: FileRecord) -> bool:
        return record.index_sha256 in self._indexes and self._cache.is_intact(record)

    def _check_read_only(self, opened: OpenedModel) -> None:
        """Raise if a link, or a mount inside the cache, led to a file that can be written to."""
        for descriptor in opened.blobs:  # an index is sealed
            if not os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
                raise self._broken("leads to files that can be written to")

    def _broken(self, how: str) -> CraftcacheError:
        return CraftcacheError(f"serve_dir {self._serve_dir} {how}", hint=self._hint)

    @property
    def _hint(self) -> str:
        return (
            f"Mount it by BindReadOnlyPaths={self._cache.root}:{self._serve_dir} in "
            "craftcached.service, or leave serve_dir out"
        )
