"""The quarantine: what turned out wrong, kept for a look, for a time and within a size."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import stat
import time
from typing import TYPE_CHECKING

from craftcache.amounts import size_text
from craftcache.daemon.administration import QuarantinedFile
from craftcache.durations import DAY_SECONDS
from craftcache.errors import InvalidSource, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from craftcache.cache.manifest import FileRecord
    from craftcached.store.store import Store

__all__ = ["Quarantine", "overdue"]

log = logging.getLogger("craftcached")


class Quarantine:
    """The files in the quarantine of a cache; it has no state of its own.

    Args:
        store: The store whose cache it is.
        days: Days that a file is kept; 0 is no limit.
        max_bytes: Bytes that all of them may take, the oldest go first; 0 is no limit.
        clock: Returns the time in seconds since the epoch.

    Attributes:
        days: As above; may be changed at any time.
        max_bytes: As above; may be changed at any time.
    """

    def __init__(
        self, store: Store, *, days: float, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self.days = days
        self.max_bytes = max_bytes
        self._store = store
        self._directory = store.cache.quarantine
        self._clock = clock

    async def files(self) -> list[QuarantinedFile]:
        """All files, the oldest first."""
        return await asyncio.to_thread(self._look, self._models_by_name)

    async def totals(self) -> tuple[int, int]:
        """Number of the files, and bytes of them."""
        found = await asyncio.to_thread(self._look, dict)
        return len(found), sum(file.size for file in found)

    def lost(self) -> Callable[[FileRecord], bool]:
        """A test for whether a published file is here instead of in its place, as of now.

        Both calls block, this one for a look at the whole directory.
        """
        names: set[str] = set()
        with contextlib.suppress(OSError):
            names.update(map(_blob_name, os.listdir(self._directory)))
        cache = self._store.cache
        return lambda record: (
            os.path.basename(record.path) in names and not os.path.exists(cache.path(record))
        )

    async def remove(self, name: str) -> int:
        """Remove a file for good; returns the bytes freed.

        Raises:
            NotFound: There is none of that name.
            InvalidSource: It is no name of a file.
        """
        if name in ("", ".", "..") or "/" in name or not name.isprintable():
            raise InvalidSource(
                "no name of a file in the quarantine", hint="craftcache quarantine ls"
            )
        found = await asyncio.to_thread(self._look, dict)
        for file in found:
            if file.name == name:
                await asyncio.to_thread(_remove, self._directory / name)
                log.info("%s is removed from the quarantine: %s", name, size_text(file.size))
                return file.size
        raise NotFound(
            f"{name} is not in the quarantine", hint="craftcache quarantine ls lists what is"
        )

    async def trim(self) -> None:
        """Remove what is there for longer, or takes more, than the settings allow."""
        found = await asyncio.to_thread(self._look, dict)
        for file in overdue(found, self._clock(), days=self.days, max_bytes=self.max_bytes):
            await asyncio.to_thread(_remove, self._directory / file.name)
            size = size_text(file.size)
            log.info("%s has been in the quarantine long enough: %s", file.name, size)

    def _look(self, models: Callable[[], Mapping[str, list[str]]]) -> list[QuarantinedFile]:
        sources = models()
        found = []
        with contextlib.suppress(OSError):  # of a directory that is gone the monitor tells
            for entry in os.scandir(self._directory):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    found.append(
                        QuarantinedFile(
                            entry.name,
                            _size(self._directory / entry.name, status),
                            status.st_ctime,  # moved by the rename that put it there
                            tuple(sources.get(_blob_name(entry.name), ())),
                        )
                    )
        return sorted(found, key=lambda file: (file.since, file.name))

    def _models_by_name(self) -> dict[str, list[str]]:
        """Sources of the published models by the names of their blobs."""
        named: dict[str, list[str]] = {}
        for manifest in self._store.cache.manifests():
            for record in manifest.files:
                named.setdefault(os.path.basename(record.path), []).append(manifest.source)
        return {name: sorted(set(sources)) for name, sources in named.items()}


def overdue(
    files: Iterable[QuarantinedFile], now: float, *, days: float, max_bytes: int
) -> list[QuarantinedFile]:
    """Those of the files that are to be removed, the oldest first.

    Args:
        files: All files.
        now: The present time, in seconds since the epoch.
        days: Days that a file is kept; 0 is no limit.
        max_bytes: Bytes that all of them may take; 0 is no limit.
    """
    ordered = sorted(files, key=lambda file: (file.since, file.name))
    excess = sum(file.size for file in ordered) - max_bytes if max_bytes > 0 else 0
    going = []
    for file in ordered:
        is_old = days > 0 and now - file.since > days * DAY_SECONDS
        if is_old or excess > 0:
            going.append(file)
            excess -= file.size
    return going


def _blob_name(name: str) -> str:
    """The name that a file in the quarantine had before; see CacheDir.set_aside."""
    return name.partition("-")[0]


def _size(path: Path, status: os.stat_result) -> int:
    """Bytes of a file, or of all files in a directory."""
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size
    return sum(
        (os.lstat(os.path.join(parent, name)).st_size)
        for parent, _, names in os.walk(path)
        for name in names
    )


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
