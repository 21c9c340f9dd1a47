"""Connections to ``craftcache.sock``: how many there may be, and which makes way for the next.

A connection is *idle* while no request of it is worked on: its client has said nothing yet, or has
its answer and keeps the connection for later. Idle ones hold descriptors that the rest of the
daemon needs, so the oldest of them is given up where there are too many; every HTTP client opens
another for its next request.
"""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING

from aiohttp import web

from .sockets import BACKLOG

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from socket import socket

    from aiohttp.web_protocol import RequestHandler

__all__ = ["HttpConnections"]

SHARE = 8
"""One of so many of the daemon's descriptors is for this interface; workers have half."""

ACCEPTS_AT_ONCE = 4
"""Connections accepted before those that stand are heard: few, so that none makes way unheard."""


class HttpConnections:
    """Accepts the connections of one HTTP interface; its state changes without an await.

    Those that asyncio has just accepted are not counted yet, so there are a few more for a moment.

    Args:
        limit: How many there may be; by default a share of the descriptors of this process.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit or resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE
        self._busy: set[RequestHandler] = set()
        self._server: web.Server
        self._accepting: asyncio.Server

    async def accept(self, listener: socket, server: web.Server) -> None:
        """Hand those who connect to ``listener`` to ``server``, until ``stop``."""
        self._server = server
        self._accepting = await asyncio.get_running_loop().create_server(
            self._next, sock=listener, backlog=ACCEPTS_AT_ONCE
        )
        listener.listen(BACKLOG)  # how many may wait, which to asyncio is how many it accepts

    def stop(self) -> None:
        """Accept nobody any more, and close the listening socket."""
        self._accepting.close()

    @property
    def middleware(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        """Notes which connections have a request worked on; for the server's application."""

        @web.middleware
        async def is_busy(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            protocol = request.protocol
            self._busy.add(protocol)
            try:
                return await handler(request)
            finally:
                self._busy.discard(protocol)

        return is_busy

    def _next(self) -> RequestHandler:
        """What speaks with a newcomer; where there are too many, the oldest idle one ends.

        Where none is idle the newcomer is heard all the same: those are people at work.
        """
        connections = self._server.connections
        idle = (each for each in connections if each not in self._busy)
        for _ in range(len(connections) + 1 - self._limit):
            oldest = next(idle, None)
            if oldest is None:
                break
            oldest.force_close()
        return self._server()
