"""Scrubbing: all bytes of published files hashed again and compared with their digests.

Disks and memory fail, and root can write anywhere. A file with a wrong hash goes to quarantine, so
that no worker is served it any more and the next warm or load fetches it anew. It is background
work: one file at a time, in pieces; a request can be cancelled between any two of them.
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
"""Bytes hashed at a time: some hundredths of a second of one core."""

_UNREADABLE = frozenset({errno.EIO, errno.EISDIR})
"""Error numbers that mean that the file is damaged, not that this process lacks a resource."""


class Scrubber:
    """Hashes published files again; one instance a daemon.

    Args:
        store: The published models.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hashing = Threads(1, "verify")
        # Held across a whole request, so that only one hashes at a time. Taken before the store's
        # writing thread, which moves files to quarantine; no other lock is taken inside.
        self._turn = asyncio.Lock()

    def close(self) -> None:
        """End its thread; no request may be running."""
        self._hashing.close()

    async def verify(self, models: Iterable[Manifest]) -> list[Verdict]:
        """Verify all files of ``models``; a file that several of them share is hashed once.

        Files whose models are removed meanwhile are left out of the result.
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
                    known = FileStamp.of_stamp(stamp)
                    await self._hashing.run(self._store.cache.stamps.record, sha256, known)
                return "right", None
            quarantined = await self._store.set_aside(record, stamp)
            if quarantined is not None:  # None: another file was put in its place, so hash that
                shown = self._store.cache.shown(quarantined)
                log.error("%s does not hold what was verified; it is %s now", record.path, shown)
                return "wrong", shown

    async def _hash(self, path: Path) -> str | None:
        """The sha256 of a file, in hex; None where the disk cannot read its bytes."""
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
