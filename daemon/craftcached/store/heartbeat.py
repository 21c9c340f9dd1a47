"""The heartbeat of the daemon that writes to a cache, for file systems that do not carry its lock.

``flock`` keeps two daemons apart where both ask the same kernel or lock server. Through FUSE, or on
Lustre mounted with ``localflock``, each node has locks of its own. There the daemon also rewrites a
file every few seconds; who finds such a file waits until it has seen it stay as it is. No clocks of
two nodes are compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from craftcache.cache.durable import write_file
from craftcache.cache.plain_file import IS_NO_FILE, read_plain
from craftcache.errors import Unavailable
from craftcache.wire import WireError
from craftcache.wire.fields import Fields
from craftcache.wire.record import JsonRecord, text
from craftcached.process_identity import ProcessIdentity

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Heartbeat"]

log = logging.getLogger("craftcached")

BEAT_SECONDS = 5.0
"""Time between two beats."""

MAX_SIGN_BYTES = 4096

MAX_TOKEN = 64

SILENT_BEATS = 3
"""Beats that a daemon may miss, for a slow server say, before another takes its place."""


@dataclass(frozen=True, slots=True)
class _Sign(JsonRecord):
    """What the file holds.

    Attributes:
        token: Drawn by the daemon at its start.
        process: The daemon.
        beat: Number of the beat.
    """

    token: Annotated[str, text(MAX_TOKEN)]
    process: ProcessIdentity
    beat: int


class Heartbeat:
    """Beats from its start until it is stopped.

    Args:
        path: The file.
        beat_seconds: Time between two beats.

    Attributes:
        lost: Set once another daemon beats there.
    """

    def __init__(self, path: Path, *, beat_seconds: float = BEAT_SECONDS) -> None:
        self.lost = asyncio.Event()
        self._path = path
        self._beat_seconds = beat_seconds
        self._sign: _Sign
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait until no other daemon beats, and begin.

        Raises:
            Unavailable: Another one does.
            OSError: The file cannot be written.
        """
        me = await asyncio.to_thread(ProcessIdentity.mine)
        self._sign = _Sign(secrets.token_hex(16), me, beat=0)
        found = await asyncio.to_thread(self._read)
        if found is not None and not await asyncio.to_thread(found.process.has_ended, seen_from=me):
            await self._watch(found)
        await asyncio.to_thread(self._write)
        self._task = asyncio.create_task(self._run(), name="heartbeat")

    async def stop(self) -> None:
        """End it; the next daemon need not wait."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self.lost.is_set():
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._path.unlink, missing_ok=True)

    async def _watch(self, found: _Sign) -> None:
        """See the file stay as it is, for as long as a living daemon may take to change it."""
        log.info(
            "the cache was last written by %s, perhaps it still is: looking for %.0f s",
            *(found.process, SILENT_BEATS * self._beat_seconds),
        )
        for _ in range(SILENT_BEATS):
            await asyncio.sleep(self._beat_seconds)
            seen = await asyncio.to_thread(self._read)
            if seen is not None and seen != found:
                raise Unavailable(
                    f"another craftcached ({seen.process}) already writes to the cache at "
                    f"{self._path.parent.parent}",
                    hint="Stop it first, set read_only here, or give this one another cache_dir",
                    retryable=False,
                )

    async def _run(self) -> None:
        while not self.lost.is_set():
            await asyncio.sleep(self._beat_seconds)
            await self.beat()

    async def beat(self) -> None:
        """Beat once, unless another daemon does by now."""
        try:
            seen = await asyncio.to_thread(self._read)
            if seen is not None and seen.token != self._sign.token:
                log.error("another craftcached (%s) writes to this cache", seen.process)
                self.lost.set()
                return
            self._sign = replace(self._sign, beat=self._sign.beat + 1)
            await asyncio.to_thread(self._write)
        except OSError as error:  # the directory was removed, or the server is away
            log.debug("no heartbeat: %s", error)

    def _read(self) -> _Sign | None:
        """The sign that is there; None where there is none that a daemon wrote."""
        try:
            return _Sign.parse(Fields(json.loads(read_plain(self._path, MAX_SIGN_BYTES))))
        except (ValueError, WireError):
            return None
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, *IS_NO_FILE):
                raise
            return None

    def _write(self) -> None:
        data = json.dumps(self._sign.to_fields()).encode()
        write_file(self._path, data, staging=self._path.parent, durable=False)
