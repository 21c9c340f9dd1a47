"""Handing out published files: opened for reading, and through a mount that nobody can write to.

Whoever is sent a descriptor can open ``/proc/self/fd/N`` anew, and root in a container may then
write to the file. What was opened through a read-only mount of the cache stays read-only for it
as well, so workers are served below ``serve_dir`` where that is set.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from craftcache.cache.directory import CacheDir
from craftcache.cache.durable import staging_name
from craftcache.config import ConfigError
from craftcache.errors import CraftcacheError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from craftcache.cache.manifest import FileRecord, Manifest

__all__ = ["BlobOpener", "OpenedModel"]

PATHS_KEPT = 1024
"""Files whose paths are not made anew for each worker that asks."""

_READING = os.O_RDONLY | os.O_CLOEXEC


@dataclass(slots=True)
class OpenedModel:
    """Verified files of a model, open for reading; close it when they have been handed over.

    Attributes:
        manifest: What they are part of.
        records: In the order of the request.
        blobs: Descriptors, one a record.
        indexes: Descriptors, one a record.
    """

    manifest: Manifest
    records: tuple[FileRecord, ...]
    blobs: list[int] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)

    def is_intact(self) -> bool:
        """Whether what was opened is what was verified."""
        return all(
            record.describes(os.fstat(blob))
            for record, blob in zip(self.records, self.blobs, strict=True)
        )

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that are open."""
        return (*self.blobs, *self.indexes)

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.blobs, self.indexes = [], []


class BlobOpener:
    """Opens published files for workers.

    Args:
        cache: What is published.
        serve_dir: A read-only mount of the same directory; None trusts root in containers.
    """

    def __init__(self, cache: CacheDir, serve_dir: Path | None) -> None:
        self._cache = cache
        self._serve_dir = serve_dir
        self._served = cache if serve_dir is None else CacheDir(serve_dir, cache.trusted_uids)
        self._paths = lru_cache(PATHS_KEPT)(self._make_paths)

    def check(self) -> None:
        """See that ``serve_dir`` shows the cache, and only shows it.

        Raises:
            ConfigError: It does not.
        """
        if self._serve_dir is None:
            return
        name = staging_name()
        probe = self._cache.staging / name
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            # Nothing is written: that it could be is enough.
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
        """Open published files; None if one is not there as it was verified, or not inspected.

        Args:
            manifest: What they are part of.
            records: Which.

        Raises:
            CraftcacheError: ``serve_dir`` does not show what the cache holds, read-only.
            OSError: There are no descriptors left.
        """
        opened = OpenedModel(manifest, tuple(records))
        try:
            for record in records:
                blob, index = self._paths(record)
                opened.blobs.append(os.open(blob, _READING))
                opened.indexes.append(os.open(index, _READING))
            is_intact = opened.is_intact()
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
        if self._serve_dir is not None and all(map(self._cache.is_ready, records)):
            raise self._broken("lacks published files")
        return None

    def _make_paths(self, record: FileRecord) -> tuple[str, str]:
        """Of a blob and its index, as the system takes them: a third of a hit went into these."""
        blob, index = self._served.path(record), self._served.index_path(record.sha256)
        return os.fspath(blob), os.fspath(index)

    def _check_read_only(self, opened: OpenedModel) -> None:
        """A link, or a mount inside the cache, may have led out of ``serve_dir``."""
        for descriptor in opened.descriptors:
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
