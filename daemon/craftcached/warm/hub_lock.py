"""huggingface_hub's lock of a blob, held until the blob is published, and only while that nears.

Unmodified programs that want the same blob wait for this lock, without limit, and then find the
blob; without it they would download it a second time. A file that has come waits for the rest of
its request, with which it is published as one; meanwhile its lock stands for all of them. So a
download that stalls lets go of its lock, and a request that stalls lets go of all that it holds.

The other way round, a program of theirs that holds the lock and makes no progress is passed by
after some patience. That is safe, because correctness never rests on the lock: publishing neither
overwrites a right blob nor trusts a wrong one, see HubTree.publish_blob.

Lock order: this lock is taken before the fetch engine's turn for a file and before the store's
publishing thread, and is held across both; see Obtainer for several at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from craftcache.cache.durable import make_directory
from craftcached.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from craftcache.cache.hub_cache import HubTree

    from .stalls import StallDetector

__all__ = ["HubLock", "PATIENCE_SECONDS"]

MODE = 0o664
"""As huggingface_hub makes its lock files, so that other users can wait for them too."""

PATIENCE_SECONDS = 5.0

TRY_SECONDS = 0.5
"""How long a thread waits for the lock at a time; a cancelled request waits for it to end."""

_WAITING = Threads(16, "lock")
"""For waits alone, which take long and do nothing; what they held up would take microseconds."""


class HubLock:
    """The lock of one blob.

    Args:
        tree: The repository's part of the cache.
        etag: The blob's name.
        patience: Seconds without progress after which whoever holds the lock is passed by, and
            after which we let go of it ourselves.
    """

    def __init__(self, tree: HubTree, etag: str, *, patience: float = PATIENCE_SECONDS) -> None:
        self._blobs = tree.blob(etag).parent
        self._blob = tree.blob(etag)
        self._path = tree.lock_path(etag)
        self._patience = patience
        # Acquired and released from whichever thread is at hand.
        self._lock = FileLock(self._path, mode=MODE, thread_local=False)
        self._watch: asyncio.Task[None] | None = None
        self._awaited: list[StallDetector] = []

    @property
    def is_held(self) -> bool:
        """Whether others wait for us now."""
        return self._lock.is_locked

    async def acquire(self) -> bool:
        """Wait for the lock as long as whoever holds it is making progress.

        Returns:
            Whether the blob is there, because the other one was faster.
        """
        try:
            await asyncio.to_thread(make_directory, self._path.parent)
        except OSError:  # nothing rests on the lock but economy
            return self._blob.exists()
        loop = asyncio.get_running_loop()
        seen, since = -1, loop.time()  # bytes that the holder has, and since when it has them
        while not await self._try_acquire(TRY_SECONDS):
            # Whoever holds the lock may have published already, and be busy with another step.
            if self._blob.exists():
                return True
            grown = await asyncio.to_thread(self._others_bytes)
            if grown > seen:
                seen, since = grown, loop.time()
            # Stopped, or a stale lock of a network file system: we go on without the lock.
            elif loop.time() - since > self._patience:
                return False
        self._watch = asyncio.create_task(self._keep_while_progressing())
        return self._blob.exists()

    @contextlib.contextmanager
    def waiting_for(self, reception: StallDetector) -> Iterator[None]:
        """While inside, the blob is not published before ``reception`` ends.

        The lock is let go when all that is waited for so has stalled.
        """
        self._awaited.append(reception)
        try:
            yield
        finally:
            self._awaited.remove(reception)

    def release(self) -> None:
        """Let go, whether it is held or not."""
        if self._watch is not None:
            self._watch.cancel()
        self._lock.release()

    async def _keep_while_progressing(self) -> None:
        """Let go of the lock while nothing comes; take it again, if it is free, when bytes do."""
        while True:
            before = {reception: reception.snapshot() for reception in self._awaited}
            await asyncio.sleep(self._patience)
            if self._has_stalled(before):
                self._lock.release()
            # Bytes come again. Whoever has taken the lock meanwhile keeps it.
            elif not self.is_held:
                await self._try_acquire(0)

    def _has_stalled(self, since: Mapping[StallDetector, Mapping[str | None, int]]) -> bool:
        return bool(self._awaited) and all(
            reception in since and reception.has_stalled(since[reception])
            for reception in self._awaited
        )

    async def _try_acquire(self, seconds: float) -> bool:
        try:
            await _WAITING.run(self._lock.acquire, timeout=seconds)
        except Timeout:
            return False
        except (NotImplementedError, OSError):
            # Another user's, a directory in its place, or a file system without locks: whoever
            # holds it all the same is waited for, but not by asking all the time.
            await asyncio.sleep(seconds)
            return False
        except asyncio.CancelledError:
            self._lock.release()  # the thread may have got it yet, and nobody would know
            raise
        return True

    def _others_bytes(self) -> int:
        """How much of the blob other processes have downloaded so far."""
        total = 0
        for path in self._blobs.glob(f"{self._blob.name}.*incomplete"):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total
