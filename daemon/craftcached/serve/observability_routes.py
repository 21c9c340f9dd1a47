"""HTTP for what the daemon sees of itself: its events, its activity, and who uses which model."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

from aiohttp import web

from craftcache.daemon.activity import Activity
from craftcache.daemon.processes import ModelProcess
from craftcache.errors import InvalidSource
from craftcache.wire import NotWarm

from .openapi import NDJSON, answers

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcached.observability import Observability
    from craftcached.service import Service

    from .worker import WorkerStatistics

__all__ = ["ObservabilityRoutes"]

SEQUENCE_HEADER = "Craftcache-Sequence"
"""Number of the newest event when a stream begins: from where to go on if it breaks before any."""

MAX_SEQUENCE = 2**63 - 1


class ObservabilityRoutes:
    """Decodes requests and encodes answers.

    Args:
        service: Knows what is being brought.
        observability: Knows what has happened.
        workers: Returns the statistics of the worker socket.
    """

    def __init__(
        self,
        service: Service,
        observability: Observability,
        workers: Callable[[], WorkerStatistics],
    ) -> None:
        self._service = service
        self._observability = observability
        self._workers = workers

    def add_to(self, app: web.Application) -> None:
        """Serve them as part of ``app``."""
        app.router.add_get("/v1/activity", self._activity)
        app.router.add_get("/v1/not_warm", self._not_warm)
        app.router.add_get("/v1/processes", self._processes)
        app.router.add_get("/v1/events", self._events)
        app.on_shutdown.append(self._end)

    @answers(Activity)
    async def _activity(self, _request: web.Request) -> web.Response:
        counts, observability = self._observability.counts, self._observability
        activity = Activity(
            at=time.time(),
            started_at=self._service.started_at,
            coming=tuple(self._service.running.coming()),
            queued=len(self._service.warms.queue),
            not_warm=observability.not_warm_count(),
            hits=counts.loads["daemon", "hit"],
            misses=counts.loads["daemon", "miss"],
            bytes_served=counts.bytes_served,
            bytes_fetched=counts.bytes_fetched.total(),
            evictions=counts.evictions.total(),
            refusals=counts.refusals.total(),
            connections=self._workers().connections,
            processes=len(observability.processes),
            newest_event=observability.events.newest,
        )
        return web.json_response(activity.to_fields())

    @answers({"not_warm": [NotWarm]})
    async def _not_warm(self, _request: web.Request) -> web.Response:
        found = await self._service.inventory.not_warm()
        # In a thread: of thousands it takes longer than a request should wait.
        text = await asyncio.to_thread(
            lambda: json.dumps({"not_warm": [each.to_fields() for each in found]})
        )
        return web.json_response(text=text)

    @answers({"processes": [ModelProcess]})
    async def _processes(self, _request: web.Request) -> web.Response:
        found = await self._observability.processes.all(self._service.inventory.paths)
        return web.json_response({"processes": [each.to_fields() for each in found]})

    @answers(media=(NDJSON,), errors=(InvalidSource,))
    async def _events(self, request: web.Request) -> web.StreamResponse:
        """One line for each event, until the client or the daemon goes away."""
        since, events = _since(request), self._observability.events
        begun = events.newest if since is None else since
        headers = {"Content-Type": NDJSON, SEQUENCE_HEADER: str(begun)}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        # Not from now: an event of the meantime would be lost.
        async for batch in events.stream(begun):
            await response.write(b"".join(json.dumps(event).encode() + b"\n" for event in batch))
        await response.write_eof()
        return response

    async def _end(self, _app: web.Application) -> None:
        self._observability.events.end()


def _since(request: web.Request) -> int | None:
    """The query's ``since``; None where there is none.

    Raises:
        InvalidSource: It is no number of an event.
    """
    text = request.query.get("since")
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= MAX_SEQUENCE:
        return int(text)
    raise InvalidSource(
        f"since={text!r} is no number of an event", hint="Give the seq of the last one heard, or 0"
    )
