"""HTTP for verifying again and for the quarantine: ``/v1/verify`` and ``/v1/quarantine``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import unquote

from aiohttp import web

from craftcache.daemon.administration import QuarantinedFile, Verdict, Verification
from craftcache.errors import InvalidSource, NotFound, PolicyDenied, Unavailable
from craftcache.wire import GpuComparison

from .bodies import VerifyBody, takes
from .ndjson import NdjsonStream
from .openapi import NDJSON, answers
from .peers import peer_of

if TYPE_CHECKING:
    from craftcache.wire import Progress
    from craftcached.service import Service

    from .peers import Administrators

__all__ = ["IntegrityRoutes"]

QUARANTINE = "/v1/quarantine/"


class QuarantineKeys(TypedDict):
    """How much the quarantine holds, and may."""

    bytes: int
    max_bytes: int
    days: float


class QuarantineRemovalKeys(TypedDict):
    """What a removal from the quarantine freed."""

    name: str
    freed_bytes: int


REPORT = (Verification, {"results": [Verdict]})


class IntegrityRoutes:
    """Decodes requests and encodes answers; the service and its Integrity do the work.

    Args:
        service: The daemon's service.
        administrators: The peers that may verify, and remove from the quarantine.
    """

    def __init__(self, service: Service, administrators: Administrators) -> None:
        self._service = service
        self._verifications = service.integrity.verifications
        self._quarantine = service.integrity.quarantine
        self._administrators = administrators

    def add_to(self, app: web.Application) -> None:
        """Serve them as part of ``app``."""
        app.router.add_post("/v1/verify", self._verify)
        app.router.add_get("/v1/verify", self._verify_list)
        app.router.add_get("/v1/verify/{number:[0-9]{1,18}}", self._verify_show)
        app.router.add_post("/v1/gpus/verify", self._verify_gpus)
        app.router.add_get("/v1/quarantine", self._quarantine_list)
        app.router.add_delete(QUARANTINE + "{name:.+}", self._quarantine_remove)

    @answers(
        REPORT,
        media=(NDJSON,),
        also={202: Verification},
        errors=(InvalidSource, NotFound, PolicyDenied),
    )
    @takes(VerifyBody)
    async def _verify(self, request: web.Request, body: VerifyBody) -> web.StreamResponse:
        self._administrators.check(peer_of(request.transport), "verifying")
        number = await self._service.verify(body.sources)
        if not body.wait:
            state, _ = self._verifications.find(number)
            return web.json_response(state.to_fields(), status=202)
        if NDJSON in request.headers.get("Accept", ""):
            return await self._stream(request, number)
        return web.json_response(_report(*await self._verifications.wait(number)))

    @answers({"verifications": [Verification]})
    async def _verify_list(self, _request: web.Request) -> web.Response:
        states = [state.to_fields() for state in self._verifications.all()]
        return web.json_response({"verifications": states})

    @answers(REPORT, errors=(NotFound,))
    async def _verify_show(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        return web.json_response(_report(*self._verifications.find(number)))

    @answers({"results": [GpuComparison]}, errors=(NotFound, PolicyDenied, Unavailable))
    async def _verify_gpus(self, request: web.Request) -> web.Response:
        self._administrators.check(peer_of(request.transport), "verifying")
        compared = await self._service.gpus.verify()
        return web.json_response({"results": [each.to_fields() for each in compared]})

    async def _stream(self, request: web.Request, number: int) -> web.StreamResponse:
        """One line for each step and each verdict, as it comes; the last line is the end."""
        response = web.StreamResponse(headers={"Content-Type": NDJSON})
        await response.prepare(request)
        steps = NdjsonStream()

        def listen(news: Progress | Verdict) -> None:
            if isinstance(news, Verdict):
                steps.conclude({"event": "result"} | news.to_fields())
            else:
                steps.report(news)

        with self._verifications.listening(number, listen):
            state, _ = self._verifications.find(number)
            steps.conclude({"event": "verifying"} | state.to_fields())
            self._verifications.when_ended(number, steps.end)
            async for batch in steps.batches():
                await response.write(_lines(batch))
        state, _ = self._verifications.find(number)
        await response.write(_lines([{"event": "done"} | state.to_fields()]))
        await response.write_eof()
        return response

    @answers((QuarantineKeys, {"files": [QuarantinedFile]}))
    async def _quarantine_list(self, _request: web.Request) -> web.Response:
        files = await self._quarantine.files()
        beside: QuarantineKeys = {
            "bytes": sum(file.size for file in files),
            "max_bytes": self._quarantine.max_bytes,
            "days": self._quarantine.days,
        }
        return web.json_response({"files": [file.to_fields() for file in files], **beside})

    @answers(QuarantineRemovalKeys, errors=(InvalidSource, NotFound, PolicyDenied))
    async def _quarantine_remove(self, request: web.Request) -> web.Response:
        self._administrators.check(peer_of(request.transport), "removing it from the quarantine")
        name = unquote(request.raw_path.partition(QUARANTINE)[2].partition("?")[0])
        freed = await self._quarantine.remove(name)
        removal: QuarantineRemovalKeys = {"name": name, "freed_bytes": freed}
        return web.json_response(removal)


def _report(state: Verification, verdicts: list[Verdict]) -> dict[str, Any]:
    return state.to_fields() | {"results": [verdict.to_fields() for verdict in verdicts]}


def _lines(events: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)
