"""The engine: brings remote files into staging, hashed as they come and durable before it says so.

A file's bytes go to ``<staging>/<key>.part``, a name that no reader of the cache looks for; see
:mod:`.partial_file` for its life. An engine fetches any number of files at once within common
limits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Self
from weakref import WeakValueDictionary

from craftcache.errors import Unavailable
from craftcache.network.tls import tls_context
from craftcached.process_identity import current_boot_id
from craftcached.threads import Threads

from .context import FetchContext, FetchRequest
from .disk_space import DiskSpace, free_bytes
from .job import Job
from .limits import Bandwidth, Claimant, Connections, MemoryBudget
from .mirrors import Mirrors
from .network import Network
from .partial_file import Names, reclaim, stale_keys
from .repairs import Repairs
from .retry import RetryPolicy
from .transfer import Transfer
from .types import Priority
from .xet import Xet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from .settings import EngineSettings
    from .types import Fetched, RemoteFile

__all__ = ["Engine"]

log = logging.getLogger("craftcached")

THREADS = 8
"""For the writes and the hashing of all downloads."""

SYNC_THREADS = 2
"""For fsync, which may take seconds: it must not hold up the writes of other downloads."""

SWEEP_SECONDS = 3600.0


class Engine:
    """Fetches files into ``staging``; an async context manager, to be entered once.

    To be left when no fetch is running any more; cancelled ones go on at the next start.

    Args:
        staging: Directory of partial files, on the file system of the cache; no two engines
            may share one.
        settings: Limits and timeouts.
        check_url: The node's policy; called with every URL before it is requested, raises
            PolicyDenied for one that must not be.
        may_be_private: Whether a host and port that a user named may have a private, loopback or
            link-local address.
        clock: Returns Unix time in seconds, for the age of partial files.
        boot_id: Id of this boot of the machine; None asks the kernel.
        free: Returns the free bytes of the file system of ``staging``.
        space: The ledger of the room that files take which are not published yet; None makes one
            that looks at the disk alone.
        xet: Command line of the process that fetches from Xet storage; None uses HTTP for all.
        mirrors: Who is asked before origins are; None asks origins only.
    """

    def __init__(
        self,
        staging: Path,
        settings: EngineSettings,
        *,
        check_url: Callable[[str], None],
        may_be_private: Callable[[str, int], bool] = lambda _host, _port: False,
        clock: Callable[[], float] = time.time,
        boot_id: str | None = None,
        free: Callable[[], int] | None = None,
        space: DiskSpace | None = None,
        xet: Sequence[str] | None = None,
        mirrors: Mirrors | None = None,
    ) -> None:
        self._staging = staging
        self._settings = settings
        self._check_url = check_url
        self._may_be_private = may_be_private
        self._clock = clock
        self._boot_id = boot_id
        self._free = free or (lambda: free_bytes(staging))
        self._space = space
        self._xet = xet
        self._mirrors = mirrors or Mirrors()
        self._claimants: dict[str, Claimant] = {}
        # By key; each guards the files in staging under its key: one fetch, or one sweep, at a
        # time. Taken after huggingface_hub's lock of the blob, and before DiskSpace._deciding.
        self._key_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._context = await self._make_context(stack)
            with _logged("a fetched file stays in staging"):
                await self._context.threads.run(reclaim, self._staging)
            await self._sweep()
            sweeping = asyncio.create_task(self._keep_swept())
            stack.push_async_callback(_ended, sweeping)
            self._resources = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._resources.aclose()

    async def fetch(
        self,
        file: RemoteFile,
        *,
        priority: Priority,
        report: Callable[[int, int | None], None],
    ) -> Fetched:
        """See Fetcher.fetch. Two fetches of one key run one after the other."""
        async with self._key_lock(file.key):
            claimant = self._claimants[file.key] = Claimant(priority)
            limit = self._settings.deadline_seconds
            try:
                async with asyncio.timeout(limit) as deadline, self._context_for(file) as context:
                    request = FetchRequest(file, self._mirrors.route(file), claimant, report)
                    return await Job(request, context).run()
            except TimeoutError:
                if not deadline.expired():
                    raise
                raise Unavailable(f"not done within {limit:g} s", source=file.source) from None
            finally:
                del self._claimants[file.key]

    def hurry(self, key: str) -> None:
        """Raise the priority of the fetch that is running under ``key``, if one is."""
        if key in self._claimants:
            self._claimants[key].priority = Priority.WAITED_FOR

    async def _make_context(self, stack: AsyncExitStack) -> FetchContext:
        settings = self._settings
        threads, syncing = Threads(THREADS, "fetch"), Threads(SYNC_THREADS, "fsync")
        stack.callback(threads.close)
        stack.callback(syncing.close)
        try:
            await threads.run(self._staging.mkdir, mode=0o700, parents=True, exist_ok=True)
        except FileExistsError as error:
            raise Unavailable(
                f"{self._staging} is no directory", hint="Move away what is there, and start again"
            ) from error
        boot_id = await threads.run(current_boot_id) if self._boot_id is None else self._boot_id
        network = await stack.enter_async_context(self._network())
        network.warn()
        await self._read_certificates(threads)
        self._uplink = Bandwidth(settings.uplink)
        transfer = Transfer(network, settings, self._check_url, self._uplink)
        repairs = Repairs(transfer)
        stack.push_async_callback(repairs.close)
        return FetchContext(
            staging=self._staging,
            boot_id=boot_id,
            settings=settings,
            policy=RetryPolicy.from_settings(settings),
            transfer=transfer,
            threads=threads,
            syncing=syncing,
            connections=Connections(settings.max_connections, settings.max_connections_per_host),
            bandwidth=Bandwidth(settings.bandwidth),
            mirrors=self._mirrors,
            repairs=repairs,
            memory=MemoryBudget(settings.memory_bytes),
            space=self._space or DiskSpace(self._free, threads, self._staging),
            xet=Xet(self._xet, settings.stall_seconds, network.rules) if self._xet else None,
        )

    def _network(self) -> Network:
        """A new pool of connections."""
        return Network(
            user_agent=self._settings.user_agent,
            connect_seconds=self._settings.connect_seconds,
            answer_seconds=self._settings.stall_seconds,
            may_be_private=self._may_be_private,
        )

    @asynccontextmanager
    async def _context_for(self, file: RemoteFile) -> AsyncIterator[FetchContext]:
        """The context for the fetch of ``file``; with new connections if it came wrong before."""
        if file.attempt == 1:
            yield self._context
            return
        async with self._network() as network:
            transfer = Transfer(network, self._settings, self._check_url, self._uplink)
            yield replace(self._context, transfer=transfer)

    async def _read_certificates(self, threads: Threads) -> None:
        """Read the certificates of mirrors that have their own, so that no request has to.

        Raises:
            Unavailable: They cannot be read.
        """
        for mirror in self._mirrors:
            if (ca := mirror.rule.ca) is None:
                continue
            try:
                await threads.run(tls_context, ca)
            except OSError as error:  # ssl.SSLError is one
                raise Unavailable(
                    f"the certificates {ca} of mirror {mirror.rule.name} cannot be read: {error}",
                    hint="Correct ca in the setting mirrors",
                    retryable=False,
                ) from error

    async def _keep_swept(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._sweep()

    async def _sweep(self) -> None:
        """Remove partial files that no fetch has resumed for long; log those that cannot be."""
        threads = self._context.threads
        before = self._clock() - self._settings.journal_retention_seconds
        keys: set[str] = set()
        with _logged("staging is not swept"):
            keys = await threads.run(stale_keys, self._staging, before=before)
        for key in keys:
            lock = self._key_lock(key)
            if not lock.locked():
                async with lock:
                    with _logged("something stays in staging"):
                        await threads.run(Names.of(self._staging, key).remove)

    def _key_lock(self, key: str) -> asyncio.Lock:
        return self._key_locks.setdefault(key, asyncio.Lock())


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """Log what the disk refuses, and go on."""
    try:
        yield
    except OSError as error:
        log.warning("%s: %s", what, error)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
