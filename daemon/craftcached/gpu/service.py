"""What the service of a GPU does for workers: loads that end in the GPU's memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from craftcache.cache.opened import OpenFile
from craftcache.checkpoint.index import InvalidIndex, parse
from craftcache.checkpoint.shareable import why_not_shareable
from craftcache.daemon.client import DaemonClient
from craftcache.daemon.transport import Call, Cancellation, DaemonUnavailable
from craftcache.errors import CraftcacheError, InvalidSource
from craftcache.wire import DescribeGpu, GpuComparisons, Load, VerifyGpu
from craftcached.serve.peers import Administrators
from craftcached.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from craftcache.wire import Loaded, Progress, Request
    from craftcached.serve.peers import Peer

    from .holdings import Holdings

__all__ = ["GpuService"]

AnswerT = TypeVar("AnswerT")

ASKED_AT_ONCE: Final = 32
"""Requests to the daemon at once, a thread each, which waits."""

PATIENCE_SECONDS: Final = 15.0
"""Time that the daemon may be silent; then workers load without the service."""


class GpuService:
    """Answers workers; see Handler.

    Args:
        holdings: The files in the GPU's memory.
        socket_dir: Directory of the daemon's sockets.
    """

    def __init__(self, holdings: Holdings, socket_dir: Path) -> None:
        self._holdings = holdings
        self._daemon = DaemonClient(socket_dir, lambda _: PATIENCE_SECONDS)
        self._threads = Threads(ASKED_AT_ONCE, "craftcached-gpu-ask")
        self._administrators = Administrators("")
        self._refused: set[str] = set()
        """Digests of files that are known not to be shareable."""

    def close(self) -> None:
        """Close its connections to the daemon."""
        self._threads.close()
        self._daemon.close()

    def handle_nowait(self, request: Request[AnswerT], peer: Peer) -> AnswerT | None:  # noqa: ARG002
        """See Handler.handle_nowait: nothing is at hand without the daemon's word."""
        return None

    async def handle(
        self, request: Request[AnswerT], peer: Peer, report: Callable[[Progress], None]
    ) -> AnswerT:
        """See Handler.handle.

        Raises:
            InvalidSource: It is nothing that a GPU's service does.
            CraftcacheError: The error of the daemon; or see Holdings.
        """
        answer: Any
        match request:
            case Load():
                answer = await self._load(request, peer, report)
            case DescribeGpu():
                answer = await self._holdings.report()
            case VerifyGpu():
                self._administrators.check(peer, "comparing what is in the GPU's memory")
                answer = GpuComparisons(tuple(await self._holdings.verify()))
            case _:
                raise InvalidSource(
                    f"the service of a GPU does no {request.TYPE}",
                    hint="Ask the daemon, on worker/handles.sock",
                )
        return cast("AnswerT", answer)

    async def _load(self, request: Load, peer: Peer, report: Callable[[Progress], None]) -> Loaded:
        """The daemon's answer, with descriptors of the GPU's memory where files can be shared.

        Files are closed when they are dropped, so that a copy that others wait for as well goes on
        though this request was cancelled.
        """
        loaded = await self._ask(request, report)
        placed = [
            await self._placed(loaded.source, file, peer.uid, report) for file in loaded.files
        ]
        return replace(loaded, files=tuple(placed))

    async def _placed(
        self, source: str, file: OpenFile, uid: int, report: Callable[[Progress], None]
    ) -> OpenFile:
        sha256 = file.info.sha256
        if sha256 is None or sha256 in self._refused:
            return file
        if not self._holdings.has(sha256) and not await asyncio.to_thread(_is_shareable, file):
            self._refused.add(sha256)
            return file
        lent = await self._holdings.lend(source, file, sha256, uid, report)
        index, file.index = file.index, None
        return OpenFile(
            file.info, lent.descriptor, index, memory_bytes=lent.nbytes, lease=lent.lease
        )

    async def _ask(self, request: Load, report: Callable[[Progress], None]) -> Loaded:
        """Ask the daemon, in a thread; a cancelled request is withdrawn.

        Raises:
            CraftcacheError: The daemon's error; or, of no subclass, that there is no daemon: then
                workers load without this service.
        """
        loop, cancellation = asyncio.get_running_loop(), Cancellation()
        call = Call(lambda progress: _call_on(loop, report, progress), cancellation)
        asking = asyncio.ensure_future(self._threads.run(self._daemon.handle, request, call))
        try:
            return await asyncio.shield(asking)
        except DaemonUnavailable as away:
            raise CraftcacheError(str(away), hint="Start craftcached") from away
        except asyncio.CancelledError:
            cancellation.withdraw()
            await asyncio.wait([asking])
            asking.exception()  # retrieved, so that asyncio does not report it as forgotten
            raise


def _is_shareable(file: OpenFile) -> bool:
    """Whether a file holds tensors, all of which can be used where they lie in it."""
    content = file.read_index()
    if content is None:
        return False
    try:
        index = parse(content, file_size=file.info.size)
    except InvalidIndex:
        return False
    return bool(index.storages) and why_not_shareable(index) is None


def _call_on(
    loop: asyncio.AbstractEventLoop, report: Callable[[Progress], None], progress: Progress
) -> None:
    loop.call_soon_threadsafe(report, progress)
