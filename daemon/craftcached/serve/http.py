"""``craftcache.sock``: HTTP and JSON for people, tools and administration.

Decodes requests, encodes answers and checks who may; what is done is the service's. Errors are
RFC 9457 problem documents. Usable with ``curl --unix-socket``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from aiohttp import web

from craftcache.errors import CraftcacheError, InvalidSource
from craftcache.sources import parse
from craftcache.wire import Warm, WarmOptions
from craftcache.wire.fields import MAX_SOURCE

from .bodies import MAX_SOURCES, body_fields, source_list
from .bundle_routes import BundleRoutes
from .http_connections import HttpConnections
from .integrity_routes import IntegrityRoutes
from .ndjson import NdjsonStream
from .peers import Administrators, peer_of
from .watch_routes import WatchRoutes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from socket import socket

    from craftcache.cache.manifest import Manifest
    from craftcache.wire import Progress
    from craftcached.service import Service
    from craftcached.status import ModelState

    from .metrics import MetricsRoute

__all__ = ["AdminServer"]

log = logging.getLogger("craftcached")

MAX_BODY = 256 * 1024
"""Bytes of a request's body."""

FIRST_REQUEST_SECONDS = 0.05
"""Time for a client that has just connected to send its request, before the daemon stops."""

MAX_FILTERS = 64
"""Filters of one pruning."""

MODELS = "/v1/models/"
PINS = "/v1/pins/"

WARM_EXAMPLE = '{"sources": ["org/name"], "wait": true, "resident": false, "pair_only": false}'
PLAN_EXAMPLE = '{"sources": ["org/name"]}'
PIN_EXAMPLE = '{"lock": true}'
EVICT_EXAMPLE = '{"bytes": 10000000000, "dry_run": true}'
PRUNE_EXAMPLE = '{"filters": ["accessed>30d", "size>1GB"], "dry_run": true}'
"""Examples of bodies, shown to a client whose body is not right."""

NDJSON = "application/x-ndjson"
PROBLEM = "application/problem+json"


class AdminServer:
    """Serves the HTTP interface on a bound Unix socket; use ``start`` and ``close``.

    Args:
        service: The daemon's service, which does the work.
        administrators: The peers that may do more than warm and read.
        metrics: The route for Prometheus.
        drain_seconds: Time that running requests may take to finish on close.
    """

    def __init__(
        self,
        service: Service,
        administrators: Administrators,
        metrics: MetricsRoute,
        *,
        drain_seconds: float,
    ) -> None:
        self._service = service
        self._administrators = administrators
        self._connections = HttpConnections()
        app = web.Application(
            client_max_size=MAX_BODY, middlewares=[self._connections.middleware, _problems]
        )
        app.router.add_get("/v1/health", self._health)
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get(MODELS + "{source:.+}", self._model)
        app.router.add_delete(MODELS + "{source:.+}", self._delete)
        app.router.add_post("/v1/warm", self._warm)
        app.router.add_post("/v1/plan", self._plan)
        app.router.add_get("/v1/warm", self._queued)
        app.router.add_delete("/v1/warm/{number:[0-9]{1,18}}", self._withdraw)
        app.router.add_put(PINS + "{source:.+}", self._pin)
        app.router.add_delete(PINS + "{source:.+}", self._unpin)
        app.router.add_post("/v1/evict", self._evict)
        app.router.add_post("/v1/prune", self._prune)
        BundleRoutes(service.bundles, administrators).add_to(app)
        WatchRoutes(service.watches, service.events, administrators).add_to(app)
        IntegrityRoutes(service, administrators).add_to(app)
        metrics.add_to(app)
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

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(asdict(await self._service.status()))

    async def _models(self, _request: web.Request) -> web.Response:
        models = await self._service.models()
        return web.json_response({"models": [_state(model) for model in models]})

    async def _model(self, request: web.Request) -> web.Response:
        return web.json_response(_state(await self._service.model(_source(request, MODELS))))

    async def _delete(self, request: web.Request) -> web.Response:
        source, shown = self._administered(request, MODELS, "removing it")
        freed = await self._service.remove(source)
        return web.json_response({"source": shown, "freed_bytes": freed})

    async def _pin(self, request: web.Request) -> web.Response:
        source, shown = self._administered(request, PINS, "pinning it")
        body = await body_fields(request, PIN_EXAMPLE, is_optional=True)
        pin = await self._service.pin(source, lock=body.optional_flag("lock"))
        return web.json_response({"source": shown, "pinned": True, "locked": pin.is_locked})

    async def _unpin(self, request: web.Request) -> web.Response:
        source, shown = self._administered(request, PINS, "unpinning it")
        await self._service.unpin(source)
        return web.json_response({"source": shown, "pinned": False, "locked": False})

    async def _evict(self, request: web.Request) -> web.Response:
        self._administrators.check(peer_of(request.transport), "evicting")
        body = await body_fields(request, EVICT_EXAMPLE, is_optional=True)
        dry_run = body.optional_flag("dry_run")
        eviction = await self._service.evict(body.optional_integer("bytes"), dry_run=dry_run)
        return web.json_response(eviction.to_fields() | {"dry_run": dry_run})

    async def _prune(self, request: web.Request) -> web.Response:
        self._administrators.check(peer_of(request.transport), "pruning")
        body = await body_fields(request, PRUNE_EXAMPLE)
        dry_run = body.optional_flag("dry_run")
        filters = body.texts("filters", MAX_FILTERS, MAX_SOURCE)
        pruning = await self._service.prune(filters, dry_run=dry_run)
        return web.json_response(pruning.to_fields() | {"dry_run": dry_run})

    def _administered(self, request: web.Request, under: str, what: str) -> tuple[str, str]:
        """The source in the path, as named and as shown, for a peer who may do ``what`` to it."""
        source = _source(request, under)
        shown = parse(source).shown
        self._administrators.check(peer_of(request.transport), what, source=shown)
        return source, shown

    async def _warm(self, request: web.Request) -> web.StreamResponse:
        body = await body_fields(request, WARM_EXAMPLE)
        options = WarmOptions.parse(body.renamed("files", "filenames"), MAX_SOURCES)
        wanted = [_warm_of(source, options) for source in source_list(body)]
        if not body.optional_flag("wait", default=True):
            queued = await self._service.queue(list(map(_sound, wanted)))
            jobs = [warm.to_fields() for warm in queued]
            return web.json_response({"jobs": jobs}, status=202)
        if NDJSON in request.headers.get("Accept", ""):
            return await self._stream_warm(request, wanted)
        return _warm_response(
            await asyncio.gather(*(self._warm_one(warm, _ignore) for warm in wanted))
        )

    async def _plan(self, request: web.Request) -> web.Response:
        body = await body_fields(request, PLAN_EXAMPLE)
        options = WarmOptions.parse(body.renamed("files", "filenames"), MAX_SOURCES)
        warms = [_sound(_warm_of(source, options)) for source in source_list(body)]
        plan = await self._service.plan(warms)
        return web.json_response(plan.to_fields())

    async def _queued(self, _request: web.Request) -> web.Response:
        return web.json_response({"jobs": [warm.to_fields() for warm in self._service.queued()]})

    async def _withdraw(self, request: web.Request) -> web.Response:
        self._administrators.check(peer_of(request.transport), "withdrawing a queued warm")
        withdrawn = await self._service.withdraw_warm(int(request.match_info["number"]))
        return web.json_response(withdrawn.to_fields())

    async def _stream_warm(
        self, request: web.Request, wanted: list[Warm | CraftcacheError]
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
            outcome = await self._warm_one(warm, steps.report)
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
        self, warm: Warm | CraftcacheError, report: Callable[[Progress], None]
    ) -> dict[str, Any] | CraftcacheError:
        """The result of a warm as JSON, or its error."""
        if isinstance(warm, CraftcacheError):
            return warm
        try:
            warmed = await self._service.warm(warm, report)
        except CraftcacheError as error:
            return error
        except Exception:
            log.exception("warming %s failed", warm.source.shown)
            return _own_fault()
        return _published(warmed.manifest) | {
            "bytes_fetched": warmed.bytes_fetched,
            "bytes_reused": warmed.bytes_reused,
            "resident_bytes": warmed.resident_bytes,
            "not_refreshed": list(warmed.not_refreshed),
        }


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


@web.middleware
async def _problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every failure as a problem document."""
    try:
        return await handler(request)
    except CraftcacheError as error:
        return _problem(error.to_problem())
    except web.HTTPException as error:
        refusal = CraftcacheError(
            error.reason or "refused",
            hint="Are craftcache and craftcached of the same release?",
        )
        return _problem(refusal.to_problem() | {"title": error.reason, "status": error.status})
    except Exception:
        log.exception("a %s request failed", request.method)
        return _problem(_own_fault().to_problem())


def _own_fault() -> CraftcacheError:
    """The answer to a client where the daemon has a bug; the log has the exception."""
    return CraftcacheError(
        "the daemon failed at this request", hint="Its log says more", retryable=True
    )


def _problem(problem: dict[str, Any]) -> web.Response:
    return web.json_response(problem, status=problem["status"], content_type=PROBLEM)


def _source(request: web.Request, under: str) -> str:
    """The source in the path as it was sent: percent-encoded, or bare with its query behind it."""
    text = request.raw_path.partition(under)[2]
    return text if "://" in text else unquote(text)


def _published(manifest: Manifest) -> dict[str, Any]:
    needs = [{"source": need.parsed.shown, "why": need.why} for need in manifest.needs]
    return manifest.to_fields() | {
        "size": manifest.size,
        "needs": needs,
        "needed_only": manifest.needed_only,
        "superseded": manifest.superseded,
    }


def _state(state: ModelState) -> dict[str, Any]:
    model = state.model
    return _published(state.manifest) | {
        "resident_bytes": model.resident_bytes,
        "pinned": model.is_pinned,
        "locked": model.is_locked,
        "needs": [asdict(need) for need in model.needs],
        "last_used_at": _shown_time(model.last_used_at),
    }


def _shown_time(seconds: float | None) -> str | None:
    """A time as RFC 3339 writes it, in UTC."""
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _document(outcome: dict[str, Any] | CraftcacheError) -> dict[str, Any]:
    return outcome.to_problem() if isinstance(outcome, CraftcacheError) else outcome


def _warm_response(outcomes: list[dict[str, Any] | CraftcacheError]) -> web.Response:
    """All results; where any source failed, as the first failure's problem document."""
    results = {"results": [_document(outcome) for outcome in outcomes]}
    for outcome in outcomes:
        if isinstance(outcome, CraftcacheError):
            return _problem(outcome.to_problem() | results)
    return web.json_response(results)
