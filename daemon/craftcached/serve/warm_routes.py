"""HTTP for warms, for those that are queued and for plans: ``/v1/warm`` and ``/v1/plan``."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, TypedDict

from aiohttp import web

from craftcache.cache.manifest import Manifest
from craftcache.daemon.administration import QueuedWarm
from craftcache.daemon.planning import WarmPlan
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
from craftcache.wire import Warm

from .bodies import PlanBody, WarmBody, moment_text, takes
from .model_routes import PublishedKeys, published_fields
from .ndjson import NdjsonStream
from .openapi import NDJSON, answers
from .peers import peer_of
from .problems import own_fault, problem_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.wire import Progress, WarmOptions
    from craftcached.service import Service

    from .peers import Administrators
    from .problems import ProblemDocuments

__all__ = ["WarmRoutes"]

log = logging.getLogger("craftcached")


class WarmedKeys(TypedDict):
    """What is said of a warm beside the model."""

    bytes_fetched: int
    bytes_reused: int
    resident_bytes: int | None
    not_refreshed: list[str]
    held_until: str | None


class PlanKeys(TypedDict):
    """What is said of a plan as a whole."""

    fetch_bytes: int
    tensor_bytes: dict[str, int]
    is_estimate: bool
    seconds: float | None


JOBS = {"jobs": [QueuedWarm]}


class WarmRoutes:
    """Decodes requests and encodes answers; the service and its Warms do the work.

    Args:
        service: The daemon's service.
        administrators: The peers that may withdraw what is queued.
        problems: Logs the sources that are refused of a request that goes on with the others.
    """

    def __init__(
        self, service: Service, administrators: Administrators, problems: ProblemDocuments
    ) -> None:
        self._service = service
        self._warms = service.warms
        self._administrators = administrators
        self._problems = problems

    def add_to(self, app: web.Application) -> None:
        """Serve them as part of ``app``."""
        app.router.add_post("/v1/warm", self._warm)
        app.router.add_post("/v1/plan", self._plan)
        app.router.add_get("/v1/warm", self._queued)
        app.router.add_delete("/v1/warm/{number:[0-9]{1,18}}", self._withdraw)

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
                self._problems.log(request, warm)
        if not body.wait:
            queued = await self._warms.add(list(map(_sound, wanted)), uid=uid)
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
            plan = await self._warms.plan(warms)
        return web.json_response(plan.to_fields())

    @answers(JOBS)
    async def _queued(self, _request: web.Request) -> web.Response:
        return web.json_response({"jobs": [warm.to_fields() for warm in self._warms.queue.all()]})

    @answers(QueuedWarm, errors=(PolicyDenied, NotFound))
    async def _withdraw(self, request: web.Request) -> web.Response:
        self._administrators.check(peer_of(request.transport), "withdrawing a queued warm")
        withdrawn = await self._warms.queue.withdraw(int(request.match_info["number"]))
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
            warmed = await self._warms.warm(warm, report, uid=uid)
        except CraftcacheError as error:
            return error
        except Exception:
            log.exception("warming %s failed", warm.source.shown)
            return own_fault()
        beside: WarmedKeys = {
            "bytes_fetched": warmed.bytes_fetched,
            "bytes_reused": warmed.bytes_reused,
            "resident_bytes": warmed.resident_bytes,
            "not_refreshed": list(warmed.not_refreshed),
            "held_until": moment_text(warmed.held_until),
        }
        return published_fields(warmed.manifest) | {**beside}


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


def _document(outcome: dict[str, Any] | CraftcacheError) -> dict[str, Any]:
    return outcome.to_problem() if isinstance(outcome, CraftcacheError) else outcome


def _warm_response(outcomes: list[dict[str, Any] | CraftcacheError]) -> web.Response:
    """All results; where any source failed, as the first failure's problem document."""
    results = {"results": [_document(outcome) for outcome in outcomes]}
    for outcome in outcomes:
        if isinstance(outcome, CraftcacheError):
            return problem_response(outcome.to_problem() | results)
    return web.json_response(results)
