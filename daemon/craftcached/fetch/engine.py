"""The engine: brings remote files into staging, hashed as they come and durable before it says so.

A file's bytes go to ``<staging>/<key>.part``, a name that no reader of the cache looks for. It is
mode 0600 while bytes arrive. Only when all have come, are hashed, keep the origin's promise and
are fsynced does it become 0444 and is handed out.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import ssl
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

import aiohttp

from craftcache.errors import StorageFull, Unavailable
from craftcache.verify import Hasher

from .faults import Fault, Trouble
from .offload import Threads
from .retry import RetryPolicy
from .settings import MIB, EngineSettings
from .transfer import Transfer
from .types import Fetched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from .types import Priority, RemoteFile

__all__ = ["Engine"]

BLOCK_BYTES = MIB
"""Bytes gathered before they are written and hashed in one step off the event loop."""


WRITER_THREADS = 4

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Engine:
    """Fetches files into ``staging``; an async context manager, to be entered once.

    Args:
        staging: Directory of partial files, on the file system of the cache.
        settings: Limits and patience.
        check_url: The node's policy; called with every URL before it is requested, raises
            PolicyDenied for one that must not be.
    """

    def __init__(
        self, staging: Path, settings: EngineSettings, *, check_url: Callable[[str], None]
    ) -> None:
        self._staging = staging
        self._settings = settings
        self._check_url = check_url
        self._policy = RetryPolicy.from_settings(settings)
        self._keys: dict[str, asyncio.Lock] = {}
        self._threads = Threads(WRITER_THREADS)
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._staging.mkdir, mode=0o700, parents=True, exist_ok=True)
        context = await asyncio.to_thread(ssl.create_default_context)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._settings.user_agent},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_seconds),
            auto_decompress=False,
            trust_env=True,
        )
        await self._resources.enter_async_context(session)
        self._transfer = Transfer(session, self._settings, self._check_url)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._resources.aclose()
        self._threads.close()

    async def fetch(
        self,
        file: RemoteFile,
        *,
        priority: Priority,  # noqa: ARG002  # one stream a file, so none waits for another
        report: Callable[[int, int | None], None],
    ) -> Fetched:
        """See Fetcher.fetch. Two fetches of one key run one after the other."""
        async with self._keys.setdefault(file.key, asyncio.Lock()):
            try:
                async with asyncio.timeout(self._settings.deadline_seconds):
                    return await self._try_until_done(file, report)
            except TimeoutError:
                raise Unavailable(
                    f"not done within {self._settings.deadline_seconds:g} s", source=file.source
                ) from None

    async def _try_until_done(
        self, file: RemoteFile, report: Callable[[int, int | None], None]
    ) -> Fetched:
        failures = 0
        while True:
            try:
                return await self._stream(file, report)
            except Fault as fault:
                failures += 1
                wait = self._policy.wait(fault, failures, random.random())  # noqa: S311  # jitter
                if wait is None:
                    raise fault.to_error(file.source) from None
                await asyncio.sleep(wait)

    async def _stream(self, file: RemoteFile, report: Callable[[int, int | None], None]) -> Fetched:
        path = self._staging / f"{file.key}.part"
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        hasher = Hasher.for_promise(file.promise)
        try:
            async with self._transfer.open(file, url=file.url, span=None, etag=None) as reply:
                total = file.promise.size if file.promise.size is not None else reply.total
                if None not in (total, reply.total) and total != reply.total:
                    raise Fault(Trouble.CHANGED, "the origin's file has another size than promised")
                done = 0
                block: list[bytes] = []
                while chunk := await reply.read():
                    block.append(chunk)
                    done += len(chunk)
                    if sum(map(len, block)) >= BLOCK_BYTES:
                        await self._threads.run(_store, descriptor, hasher, block)
                        block = []
                        report(done, total)
                await self._threads.run(_store, descriptor, hasher, block)
            report(done, total)
            digests = hasher.digests()
            file.promise.check(digests, source=file.source)
            os.fchmod(descriptor, 0o444)
            await self._threads.run(os.fsync, descriptor)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                raise StorageFull("no room", source=file.source) from None
            raise
        finally:
            os.close(descriptor)
        return Fetched(path, digests, reply.etag, bytes_fetched=done, bytes_reused=0)


def _store(descriptor: int, hasher: Hasher, block: list[bytes]) -> None:
    for chunk in block:
        view = memoryview(chunk)
        while view:
            view = view[os.write(descriptor, view) :]
        hasher.update(chunk)
