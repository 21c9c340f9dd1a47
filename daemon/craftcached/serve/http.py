"""``craftcache.sock``: HTTP and JSON for people, tools and administration.

Decodes requests, encodes answers and checks who may; what is done is the service's. Errors are
RFC 9457 problem documents. Usable with ``curl --unix-socket``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypedDict

from aiohttp import web

from craftcache.cache.manifest import Manifest
from craftcache.daemon.administration import QueuedWarm
from craftcache.daemon.planning import WarmPlan
from craftcache.daemon.room import UserReport
from craftcache.dependencies import DependencyState  # noqa: TC001  # for schema_of
from craftcache.errors import (
    AccessDenied,
    BudgetExceeded,
    CraftcacheError,
    IntegrityError,
    InvalidSource,
    NotACheckpoint,
    NotFound,
    PolicyDenied,
    StorageFull,
    Unavailable,
    UnsafeCheckpoint,
)
from craftcache.sources import parse
from craftcache.wire import DaemonStatus, Warm
from craftcached.budgets import BudgetLimits
from craftcached.schemas import inside

from .bodies import PlanBody, WarmBody, moment_text, takes
from .bundle_routes import BundleRoutes
from .http_connections import HttpConnections
from .integrity_routes import IntegrityRoutes
from .ndjson import NdjsonStream
from .openapi import NDJSON, PROBLEM, OpenApiRoute, answers
from .peers import Administrators, peer_of
from .retention_routes import RetentionRoutes, source_in
from .watch_routes import WatchRoutes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from socket import socket

    from craftcache.wire import Progress, WarmOptions
    from craftcached.job_log import Refusals
    from craftcached.service import Service
    from craftcached.status import ModelState

    from .metrics import MetricsRoute
    from .observability_routes import ObservabilityRoutes

__all__ = ["AdminServer"]

log = logging.getLogger("craftcached")

MAX_BODY = 256 * 1024
"""Bytes of a request's body."""

FIRST_REQUEST_SECONDS = 0.05
"""Time for a client that has just connected to send its request, before the daemon stops."""

MODELS = "/v1/models/"


class PublishedKeys(TypedDict):
    """What is said of a published model beside its manifest."""

    size: int
    needs: list[NeedKeys]
    needed_only: bool
    superseded: bool


class NeedKeys(TypedDict):
    """What is said of a dependency that was just warmed."""

    source: str
    why: str


class WarmedKeys(TypedDict):
    """What is said of a warm beside the model."""

    bytes_fetched: int
    bytes_reused: int
    resident_bytes: int | None
    not_refreshed: list[str]
    held_until: str | None


class ModelKeys(TypedDict):
    """What is said of a cached model beside its manifest, at this moment."""

    resident_bytes: int | None
    pinned: bool
    locked: bool
    last_used_at: str | None
    pinned_until: str | None
    held_until: str | None
    needs: list[DependencyState]


class PlanKeys(TypedDict):
    """What is said of a plan as a whole."""

    fetch_bytes: int
    tensor_bytes: dict[str, int]
    is_estimate: bool
    seconds: float | None


MODEL = (Manifest, PublishedKeys, ModelKeys)
JOBS = {"jobs": [QueuedWarm]}


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
        self._refusals = refusals
        self._administrators = administrators
        self._connections = HttpConnections()
        app = web.Application(
            client_max_size=MAX_BODY, middlewares=[self._connections.middleware, self._problems]
        )
        app.router.add_get("/v1/health", self._health)
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get(MODELS + "{source:.+}", self._model)
        app.router.add_post("/v1/warm", self._warm)
        app.router.add_post("/v1/plan", self._plan)
        app.router.add_get("/v1/warm", self._queued)
        app.router.add_delete("/v1/warm/{number:[0-9]{1,18}}", self._withdraw)
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

    @web.middleware
    async def _problems(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Every failure as a problem document."""
        try:
            return await handler(request)
        except CraftcacheError as error:
            self._log_refusal(request, error)
            return _problem(error.to_problem())
        except web.HTTPException as error:
            refusal = CraftcacheError(
                error.reason or "refused",
                hint="Are craftcache and craftcached of the same release?",
            )
            self._log_refusal(request, refusal)
            return _problem(refusal.to_problem() | {"title": error.reason, "status": error.status})
        except Exception:
            log.exception("a %s request failed", request.method)
            return _problem(_own_fault().to_problem())

    def _log_refusal(self, request: web.Request, error: CraftcacheError) -> None:
        resource = request.match_info.route.resource
        shown = f"{request.method} {resource.canonical if resource else 'other'}"
        with contextlib.suppress(CraftcacheError, OSError):  # it may be gone by now
            peer = peer_of(request.transport)
            self._refusals.log(shown, error, uid=peer.uid, pid=peer.pid)

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

    @answers({"models": [MODEL]})
    async def _models(self, _request: web.Request) -> web.Response:
        models = await self._service.inventory.models()
        return web.json_response({"models": [_state(model) for model in models]})

    @answers(MODEL, errors=(InvalidSource, NotFound))
    async def _model(self, request: web.Request) -> web.Response:
        return web.json_response(
            _state(await self._service.inventory.model(source_in(request, MODELS)))
        )

    @answers({"users": [UserReport], "limits": BudgetLimits})
    async def _users(self, _request: web.Request) -> web.Response:
        users = [user.to_fields() for user in self._service.users()]
        return web.json_response({"users": users, "limits": asdict(self._service.budget_limits)})

    @answers(
        {"results": [(Manifest, PublishedKeys, WarmedKeys)]},
        media=(NDJSON,),
        also={202: JOBS},
        errors=(
            *(InvalidSource, PolicyDenied, BudgetExceeded, NotFound, AccessDenied, IntegrityError),
            *(UnsafeCheckpoint, NotACheckpoint, StorageFull, Unavailable),
        ),
    )
    @takes(WarmBody)
    async def _warm(self, request: web.Request, body: WarmBody) -> web.StreamResponse:
        uid = peer_of(request.transport).uid
        wanted = [_warm_of(source, body.options) for source in body.sources]
        for warm in wanted:
            if isinstance(warm, CraftcacheError):
                self._log_refusal(request, warm)
        if not body.wait:
            queued = await self._service.warms.add(list(map(_sound, wanted)), uid=uid)
            jobs = [warm.to_fields() for warm in queued]
            return web.json_response({"jobs": jobs}, status=202)
        with self._service.working_for(uid):
            if NDJSON in request.headers.get("Accept", ""):
                return await self._stream_warm(request, wanted, uid)
            return _warm_response(
                await asyncio.gather(*(self._warm_one(warm, _ignore, uid) for warm in wanted))
            )

    @answers(
        (WarmPlan, PlanKeys),
        errors=(
            *(InvalidSource, PolicyDenied, BudgetExceeded, NotFound, AccessDenied, IntegrityError),
            Unavailable,
        ),
    )
    @takes(PlanBody)
    async def _plan(self, request: web.Request, body: PlanBody) -> web.Response:
        warms = [_sound(_warm_of(source, body.options)) for source in body.sources]
        with self._service.working_for(peer_of(request.transport).uid):
            plan = await self._service.warms.plan(warms)
        return web.json_response(plan.to_fields())

    @answers(JOBS)
    async def _queued(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"jobs": [warm.to_fields() for warm in self._service.warms.queue.all()]}
        )

    @answers(QueuedWarm, errors=(PolicyDenied, NotFound))
    async def _withdraw(self, request: web.Request) -> web.Response:
        self._administrators.check(peer_of(request.transport), "withdrawing a queued warm")
        withdrawn = await self._service.warms.queue.withdraw(int(request.match_info["number"]))
        return web.json_response(withdrawn.to_fields())

    async def _stream_warm(
        self, request: web.Request, wanted: list[Warm | CraftcacheError], uid: int
    ) -> web.StreamResponse:
        """One line for each step, as it happens; the last line of a source is its result."""
        response = web.StreamResponse(headers={"Content-Type": NDJSON})
        await response.prepare(request)
        steps = NdjsonStream()

        async def warm_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for warm in wanted:
                        group.create_task(warm_one(warm))
            finally:
                steps.end()

        async def warm_one(warm: Warm | CraftcacheError) -> None:
            outcome = await self._warm_one(warm, steps.report, uid)
            kind = "problem" if isinstance(outcome, CraftcacheError) else "result"
            steps.conclude({"event": kind} | _document(outcome))

        work = asyncio.create_task(warm_all())
        try:
            async for batch in steps.batches():
                lines = (json.dumps(event).encode() + b"\n" for event in batch)
                await response.write(b"".join(lines))
        finally:
            work.cancel()
            await asyncio.wait([work])
        await response.write_eof()
        return response

    async def _warm_one(
        self, warm: Warm | CraftcacheError, report: Callable[[Progress], None], uid: int
    ) -> dict[str, Any] | CraftcacheError:
        """The result of a warm as JSON, or its error."""
        if isinstance(warm, CraftcacheError):
            return warm
        try:
            warmed = await self._service.warms.warm(warm, report, uid=uid)
        except CraftcacheError as error:
            return error
        except Exception:
            log.exception("warming %s failed", warm.source.shown)
            return _own_fault()
        beside: WarmedKeys = {
            "bytes_fetched": warmed.bytes_fetched,
            "bytes_reused": warmed.bytes_reused,
            "resident_bytes": warmed.resident_bytes,
            "not_refreshed": list(warmed.not_refreshed),
            "held_until": moment_text(warmed.held_until),
        }
        return _published(warmed.manifest) | {**beside}


def _warm_of(text: str, options: WarmOptions) -> Warm | CraftcacheError:
    """A warm of a source, or why there is none; the others are tried all the same."""
    try:
        return Warm(parse(text), options)
    except InvalidSource as error:
        return error


def _sound(warm: Warm | CraftcacheError) -> Warm:
    """A warm that can be queued."""
    if isinstance(warm, CraftcacheError):
        raise warm
    return warm


def _ignore(_progress: Progress) -> None:
    """A report that does nothing: nobody is told of the progress."""


def _own_fault() -> CraftcacheError:
    """The answer to a client where the daemon has a bug; the log has the exception."""
    return CraftcacheError(
        "the daemon failed at this request", hint="Its log says more", retryable=True
    )


def _problem(problem: dict[str, Any]) -> web.Response:
    retry_after = problem.get("retry_after")
    headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
    return web.json_response(
        problem, status=problem["status"], content_type=PROBLEM, headers=headers
    )


def _published(manifest: Manifest) -> dict[str, Any]:
    beside: PublishedKeys = {
        "size": manifest.size,
        "needs": [{"source": need.parsed.shown, "why": need.why} for need in manifest.needs],
        "needed_only": manifest.needed_only,
        "superseded": manifest.superseded,
    }
    return manifest.to_fields() | {**beside}


def _state(state: ModelState) -> dict[str, Any]:
    model = state.model
    beside: ModelKeys = {
        "resident_bytes": model.resident_bytes,
        "pinned": model.is_pinned,
        "locked": model.is_locked,
        "last_used_at": moment_text(model.last_used_at),
        "pinned_until": moment_text(model.pinned_until),
        "held_until": moment_text(model.held_until),
        "needs": list(model.needs),
    }
    needs = [asdict(need) for need in beside["needs"]]
    return _published(state.manifest) | {**beside, "needs": needs}


def _document(outcome: dict[str, Any] | CraftcacheError) -> dict[str, Any]:
    return outcome.to_problem() if isinstance(outcome, CraftcacheError) else outcome


def _warm_response(outcomes: list[dict[str, Any] | CraftcacheError]) -> web.Response:
    """All results; where any source failed, as the first failure's problem document."""
    results = {"results": [_document(outcome) for outcome in outcomes]}
    for outcome in outcomes:
        if isinstance(outcome, CraftcacheError):
            return _problem(outcome.to_problem() | results)
    return web.json_response(results)
