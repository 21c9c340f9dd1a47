"""The services of this node's GPUs, as the daemon sees them: processes beside it.

The daemon itself stays away from the GPUs. It asks the sockets of their services, for its own
status and metrics and for administrators who have what is in the GPUs' memory compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final, TypeVar

from craftcache.daemon.gpu_services import GPU_DIRECTORY
from craftcache.daemon.transport import Call, DaemonUnavailable, WorkerSocket
from craftcache.daemon.transport.waiting import Deadlines
from craftcache.errors import CraftcacheError, NotFound, Unavailable
from craftcache.wire import DescribeGpu, VerifyGpu

from .threads import Threads

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.wire import GpuComparison, GpuReport, Request

__all__ = ["GpuServiceSockets"]

log = logging.getLogger("craftcached")

AnswerT = TypeVar("AnswerT")

ENDING: Final = ".sock"

MAX_SERVICES: Final = 16
"""Services that are asked; a node has as many GPUs at most."""

DEADLINES: Final = Deadlines(unasked=1.0, silence=30.0, restart=0.0, busy=0.0)
"""A service that does not answer at once is left out of the status. One that compares a model says
so at least every five seconds."""


class GpuServiceSockets:
    """The services of GPUs whose sockets are under a directory, and what they are asked.

    Args:
        socket_dir: The daemon's socket directory.
    """

    def __init__(self, socket_dir: Path) -> None:
        self._directory = socket_dir / GPU_DIRECTORY
        self._threads = Threads(MAX_SERVICES, "craftcached-gpus")

    def close(self) -> None:
        """End its threads."""
        self._threads.close()

    async def reports(self) -> list[GpuReport]:
        """How each service is, by the GPUs' UUIDs; without those that do not answer."""
        paths = await self._threads.run(self._sockets)
        answers = await asyncio.gather(*(self._report(path) for path in paths))
        return [answer for answer in answers if answer is not None]

    async def verify(self) -> list[GpuComparison]:
        """Have each service compare what is in its GPU's memory with what was verified.

        Raises:
            NotFound: There is no service.
            Unavailable: One of them does not answer.
            CraftcacheError: The error of one of them.
        """
        paths = await self._threads.run(self._sockets)
        if not paths:
            raise NotFound(
                f"there is no service of a GPU under {self._directory}",
                hint="Start craftcached-gpu@ for each GPU",
            )
        try:
            answers = await asyncio.gather(*(self._ask(path, VerifyGpu()) for path in paths))
        except DaemonUnavailable as away:
            raise Unavailable(f"a GPU's service failed: {away}", hint="Look at its log") from away
        return [each for answer in answers for each in answer.comparisons]

    async def _report(self, path: str) -> GpuReport | None:
        try:
            return await self._ask(path, DescribeGpu())
        except (DaemonUnavailable, CraftcacheError) as error:
            log.debug("the service of a GPU at %s does not answer: %s", path, error)
            return None

    async def _ask(self, path: str, request: Request[AnswerT]) -> AnswerT:
        call = Call()
        asking = asyncio.ensure_future(self._threads.run(_ask, path, request, call))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            call.cancellation.withdraw()
            await asyncio.wait([asking])
            asking.exception()  # retrieved, so that asyncio does not report it as forgotten
            raise

    def _sockets(self) -> list[str]:
        with contextlib.suppress(OSError):
            names = [name for name in os.listdir(self._directory) if name.endswith(ENDING)]
            return [os.path.join(self._directory, name) for name in sorted(names)[:MAX_SERVICES]]
        return []


def _ask(path: str, request: Request[AnswerT], call: Call) -> AnswerT:
    worker_socket = WorkerSocket(path, deadlines=DEADLINES)
    try:
        return worker_socket.ask(request, call, patience=lambda: DEADLINES.unasked)
    finally:
        worker_socket.close()
