"""huggingface_hub's lock of a blob, held until the blob is published or its download stalls.

Unmodified programs that want the same blob wait for this lock, without limit, and then find the
blob; without it they would download it a second time. They must not wait for ever: a file that is
complete waits for the other files of its request, with which it is published as one, and keeps its
lock meanwhile. So a download that stalls releases its lock, and a request that stalls releases all
its locks.

Nor must we wait for ever: another program that holds the lock and makes no progress for some
seconds is passed by. That is safe, because correctness does not depend on the lock: publishing
neither overwrites a right blob nor trusts a wrong one, see HubTree.publish_blob.

Lock order: this lock is taken before the fetch engine's turn for a file and before the store's
turn, and is held across both; see FileAcquirer for several at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from craftcache.cache.durable import DIRECTORY_MODE
from craftcached.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from craftcache.cache.hub_cache import HubTree

    from .stalls import StallDetector

__all__ = ["HubLock", "PATIENCE_SECONDS"]

MODE = 0o664
"""As huggingface_hub makes its lock files, so that other users can wait for them too."""

PATIENCE_SECONDS = 5.0
"""Time without progress after which a holder of the lock is passed by, or we release it."""

TRY_SECONDS = 0.5
"""Time that a thread waits for the lock at once; a cancelled request waits for it to end."""

_WAITING = Threads(16, "lock")
"""Threads for these long waits alone: on shared threads they would hold up work of microseconds."""


class _NoPlaceError(OSError):
    """The directory of the lock cannot be made."""


class HubLock:
    """The lock of one blob.

    Args:
        tree: The repository's part of the cache.
        etag: Name of the blob.
        patience: Seconds without progress after which another holder is passed by, and after
            which we release the lock ourselves.
    """

    def __init__(self, tree: HubTree, etag: str, *, patience: float = PATIENCE_SECONDS) -> None:
        self._blobs = tree.blob(etag).parent
        self._blob = tree.blob(etag)
        self._path = tree.lock_path(etag)
        self._patience = patience
        # Not bound to a thread: it is acquired on a thread of _WAITING and released on another.
        self._lock = FileLock(self._path, mode=MODE, thread_local=False)
        self._watch: asyncio.Task[None] | None = None
        self._awaited: list[StallDetector] = []

    @property
    def is_held(self) -> bool:
        """Whether we hold the lock now."""
        return self._lock.is_locked

    async def acquire(self) -> bool:
        """Wait for the lock as long as its holder makes progress.

        Returns:
            Whether the blob exists, because another program has fetched it.
        """
        loop = asyncio.get_running_loop()
        seen, since = -1, loop.time()  # bytes that the holder has, and since when it has them
        while True:
            try:
                if await self._try_acquire(TRY_SECONDS):
                    break
            except _NoPlaceError:  # without it a blob may be downloaded twice, nothing worse
                return self._blob.exists()
            # The holder may have published the blob already, and be busy with another step.
            if self._blob.exists():
                return True
            grown = await asyncio.to_thread(self._others_bytes)
            if grown > seen:
                seen, since = grown, loop.time()
            # A stopped process, or a stale lock of a network file system: go on without the lock.
            elif loop.time() - since > self._patience:
                return False
        self._watch = asyncio.create_task(self._keep_while_progressing())
        return self._blob.exists()

    @contextlib.contextmanager
    def waiting_for(self, stalls: StallDetector) -> Iterator[None]:
        """A context in which publication of the blob waits for the downloads of ``stalls``.

        The lock is released when the downloads of all such contexts have stalled.
        """
        self._awaited.append(stalls)
        try:
            yield
        finally:
            self._awaited.remove(stalls)

    def release(self) -> None:
        """Release the lock, whether it is held or not."""
        if self._watch is not None:
            self._watch.cancel()
        self._lock.release()

    async def _keep_while_progressing(self) -> None:
        """Release the lock while downloads stall; take it again, if free, when they go on."""
        while True:
            before = {stalls: stalls.snapshot() for stalls in self._awaited}
            await asyncio.sleep(self._patience)
            if self._has_stalled(before):
                self._lock.release()
            # Bytes come again. A program that has taken the lock meanwhile keeps it.
            elif not self.is_held:
                await self._try_acquire(0)

    def _has_stalled(self, since: Mapping[StallDetector, Mapping[str | None, int]]) -> bool:
        return bool(self._awaited) and all(
            stalls in since and stalls.has_stalled(since[stalls]) for stalls in self._awaited
        )

    async def _try_acquire(self, seconds: float) -> bool:
        try:
            await _WAITING.run(self._acquire, seconds)
        except Timeout:
            return False
        except _NoPlaceError:
            raise
        except (NotImplementedError, OSError):
            # The lock file is another user's or a directory, or the file system has no locks.
            # acquire goes on to see whether a holder progresses, after the time a try takes.
            await asyncio.sleep(seconds)
            return False
        except asyncio.CancelledError:
            self._lock.release()  # the thread may have acquired it after the cancellation
            raise
        return True

    def _acquire(self, seconds: float) -> None:
        try:
            # Need not be durable: after a power loss nobody holds the lock.
            os.makedirs(self._path.parent, DIRECTORY_MODE, exist_ok=True)
        except OSError as error:
            raise _NoPlaceError from error
        self._lock.acquire(timeout=seconds)

    def _others_bytes(self) -> int:
        """Bytes of the blob that other processes have downloaded so far."""
        total = 0
        for path in self._blobs.glob(f"{self._blob.name}.*incomplete"):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total
