"""A WorkerServer on an event loop of its own, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar

from craftcached.serve.sockets import bind_worker_socket
from craftcached.serve.worker import WorkerServer

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

    from craftcached.serve.handler import Handler
    from craftcached.serve.worker import Limits, WorkerStatistics

T = TypeVar("T")

SECONDS = 30.0
"""How long a test waits for what must come; it fails then, and never passes by waiting."""


class Serving:
    """A running server.

    Attributes:
        path: Its socket.
    """

    def __init__(self, path: Path, server: WorkerServer, loop: asyncio.AbstractEventLoop) -> None:
        self.path = path
        self._server = server
        self._loop = loop

    def run(self, coroutine: Coroutine[None, None, T]) -> T:
        """Run a coroutine on the server's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(SECONDS)

    def statistics(self) -> WorkerStatistics:
        """The server's own statistics, taken on its loop after all that came before."""

        async def look() -> WorkerStatistics:
            return self._server.statistics()

        return self.run(look())

    def settle(self) -> None:
        """Let the server see all that was sent to it until now."""
        for _ in range(3):
            self.statistics()

    def drain(self, seconds: float) -> None:
        """Drain the server and wait for it."""
        self.run(self._server.drain(seconds))


@contextlib.contextmanager
def serving(
    directory: Path,
    backend: Handler,
    limits: Limits | None = None,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
) -> Iterator[Serving]:
    """A server on a socket under ``directory`` until the block ends."""
    with bind_worker_socket(directory) as listener:
        loop = loop or asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            server = WorkerServer(listener, backend, limits)
            running = Serving(directory / "worker" / "handles.sock", server, loop)
            loop.call_soon_threadsafe(server.start)
            try:
                yield running
            finally:
                running.drain(0)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
