"""Whether what is published still is what was verified: every byte of it hashed again.

Disks and memory fail, and root can write anywhere. What turns out wrong goes to quarantine, so that
nobody is served it any more and the next warm or load brings it anew. It is background work: one
file at a time, in pieces, and whoever asked for it may go away between any two of them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from typing import TYPE_CHECKING

from craftcache.cache.stamps import FileStamp
from craftcache.daemon.administration import Verdict
from craftcache.digests import Hasher, Stamp
from craftcached.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.daemon.administration import Outcome

    from .store import Store

__all__ = ["Scrubber"]

log = logging.getLogger("craftcached")

PIECE_BYTES = 32 * 1024 * 1024
"""Hashed at a time: some hundredths of a second of one core."""

_UNREADABLE = frozenset({errno.EIO, errno.EISDIR})
"""Errors that are about the file and not about this process."""


class Scrubber:
    """Hashes published files again; one instance a daemon.

    Args:
        store: Where they are published.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hashing = Threads(1, "verify")
        self._turn = asyncio.Lock()  # held across the whole of a request, by one at a time

    def close(self) -> None:
        """End its thread; no request may be running."""
        self._hashing.close()

    async def verify(self, models: Iterable[Manifest]) -> list[Verdict]:
        """Verify all files of ``models``; what several of them share is hashed once.

        Files that are removed with their models meanwhile are left out.
        """
        async with self._turn:
            known: dict[tuple[str, str], tuple[Outcome, str | None]] = {}
            verdicts = []
            for model in models:
                for record in model.files:
                    key = (record.path, record.sha256)
                    if key not in known:
                        known[key] = await self._verify(record)
                    outcome, quarantined = known[key]
                    verdicts.append(
                        Verdict(model.source, record.filename, record.sha256, outcome, quarantined)
                    )
            published = {
                (model.source, record.filename, record.sha256)
                for model in await self._store.manifests()
                for record in model.files
            }
            return [
                each
                for each in verdicts
                if each.outcome != "missing"
                or (each.source, each.filename, each.sha256) in published
            ]

    async def _verify(self, record: FileRecord) -> tuple[Outcome, str | None]:
        path = self._store.cache.path(record)
        while True:
            try:
                stamp = Stamp.of(path.stat())
                sha256 = await self._hash(path)
                after = Stamp.of(path.stat())
            except FileNotFoundError:
                return "missing", None
            if sha256 == record.sha256 and after == stamp:
                if after.ctime_ns == stamp.ctime_ns:
                    self._store.cache.stamps.record(sha256, FileStamp.of_stamp(stamp))
                return "right", None
            quarantined = await self._store.set_aside(record, stamp)
            if quarantined is not None:  # else another was put in its place meanwhile
                shown = self._store.cache.shown(quarantined)
                log.error("%s does not hold what was verified; it is %s now", record.path, shown)
                return "wrong", shown

    async def _hash(self, path: Path) -> str | None:
        """The sha256 of a file; None where the disk does not give its bytes."""
        run, hasher, position = self._hashing.run, Hasher(), 0
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while piece := await run(os.pread, descriptor, PIECE_BYTES, position):
                    await run(hasher.update, piece)
                    position += len(piece)
            finally:
                await run(os.close, descriptor)
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            return None
        return hasher.digests().sha256
