"""``craftcache.sock``: HTTP and JSON for people, tools and administration.

Decodes requests, encodes answers and checks who may; what is done is the service's. What belongs
together has a module of its routes. Errors are problem documents. Usable with
``curl --unix-socket``.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

from aiohttp import web

from craftcache.daemon.room import UserReport
from craftcache.wire import DaemonStatus
from craftcached.budgets import BudgetLimits
from craftcached.schemas import inside

from .bundle_routes import BundleRoutes
from .http_connections import HttpConnections
from .integrity_routes import IntegrityRoutes
from .model_routes import ModelRoutes
from .openapi import OpenApiRoute, answers
from .problems import ProblemDocuments
from .retention_routes import RetentionRoutes
from .warm_routes import WarmRoutes
from .watch_routes import WatchRoutes

if TYPE_CHECKING:
    from socket import socket

    from craftcached.job_log import Refusals
    from craftcached.service import Service

    from .metrics import MetricsRoute
    from .observability_routes import ObservabilityRoutes
    from .peers import Administrators

__all__ = ["AdminServer"]

MAX_BODY = 256 * 1024
"""Bytes of a request's body."""

FIRST_REQUEST_SECONDS = 0.05
"""Time for a client that has just connected to send its request, before the daemon stops."""


class AdminServer:
    """Serves the HTTP interface on a bound Unix socket; use ``start`` and ``close``.

    Args:
        service: The daemon's service, which does the work.
        administrators: The peers that may do more than warm and read.
        metrics: The route for Prometheus.
        observability_routes: The routes for what the daemon sees of itself.
        refusals: Logs the requests that are answered by an error.
        drain_seconds: Time that running requests may take to finish on close.
    """

    def __init__(
        self,
        service: Service,
        administrators: Administrators,
        metrics: MetricsRoute,
        observability_routes: ObservabilityRoutes,
        refusals: Refusals,
        *,
        drain_seconds: float,
    ) -> None:
        self._service = service
        self._connections = HttpConnections()
        problems = ProblemDocuments(refusals)
        app = web.Application(
            client_max_size=MAX_BODY,
            middlewares=[self._connections.middleware, problems.middleware],
        )
        app.router.add_get("/v1/health", self._health)
        app.router.add_get("/v1/status", self._status)
        ModelRoutes(service.inventory).add_to(app)
        WarmRoutes(service, administrators, problems).add_to(app)
        RetentionRoutes(service.retention, administrators).add_to(app)
        BundleRoutes(service.bundles, administrators).add_to(app)
        app.router.add_get("/v1/users", self._users)
        WatchRoutes(service.watches, administrators).add_to(app)
        IntegrityRoutes(service, administrators).add_to(app)
        observability_routes.add_to(app)
        metrics.add_to(app)
        OpenApiRoute().add_to(app)
        # aiohttp waits for so long twice: for the request, then for the connection.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,  # a client that disconnects cancels its request
            shutdown_timeout=drain_seconds / 2,
        )

    async def start(self, listener: socket) -> None:
        """Serve on ``listener``, which stays the caller's to unlink."""
        await self._runner.setup()
        await self._accept(listener)

    async def listen_on(self, listener: socket) -> None:
        """Accept on another socket from now on; running requests go on."""
        self._connections.stop()
        await self._accept(listener)

    async def _accept(self, listener: socket) -> None:
        server = self._runner.server
        if server is None:
            raise RuntimeError("serving begins with setup")
        await self._connections.accept(listener, server)

    async def close(self) -> None:
        """Stop accepting, let running requests finish, close the rest."""
        self._connections.stop()
        await asyncio.sleep(FIRST_REQUEST_SECONDS)
        await self._runner.cleanup()

    @answers({"status": str})
    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    @answers(inside("report", DaemonStatus.parse))
    async def _status(self, _request: web.Request) -> web.Response:
        status = await self._service.inventory.status()
        return web.json_response(status.to_document())

    @answers({"users": [UserReport], "limits": BudgetLimits})
    async def _users(self, _request: web.Request) -> web.Response:
        users = [user.to_fields() for user in self._service.users()]
        return web.json_response({"users": users, "limits": asdict(self._service.budget_limits)})
