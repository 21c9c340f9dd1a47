"""HTTP for watches: ``/v1/watches``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from aiohttp import web

from craftcache.daemon.administration import WatchedGeneration, WatchList, WatchReport
from craftcache.errors import InvalidSource, NotFound, PolicyDenied
from craftcache.sources import FILENAMES, check_watch_name
from craftcache.watch_rule import WatchRule

from .bodies import RollbackBody, takes
from .openapi import answers
from .peers import peer_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from craftcache.cache.manifest import Manifest
    from craftcache.wire.fields import Fields
    from craftcached.watch import Report, Watches

    from .peers import Administrators

__all__ = ["WatchRoutes"]


class WatchRemovalKeys(TypedDict):
    """What the end of a watch freed."""

    name: str
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class WatchBody:
    """The keys of a watch's rule, without its name; WatchRule reads them."""

    keys: Mapping[str, object]

    EXAMPLE: ClassVar[str] = (
        '{"directory": "/runs/a/export", "settle": 10, "marker": null, "gate": null, "keep": 2}'
    )
    IS_OPTIONAL: ClassVar[bool] = False
    SHAPE: ClassVar[type[WatchRule]] = WatchRule

    @classmethod
    def parse(cls, fields: Fields, /) -> WatchBody:
        """See Body.parse."""
        return cls(fields.whole)


WATCH_ERRORS = (InvalidSource, NotFound, PolicyDenied)
REPORT = (WatchReport, WatchRule)


class WatchRoutes:
    """Decodes requests and encodes answers; Watches do the work.

    Args:
        watches: The daemon's watches.
        administrators: The peers that may change watches.
    """

    def __init__(self, watches: Watches, administrators: Administrators) -> None:
        self._watches = watches
        self._administrators = administrators

    def add_to(self, app: web.Application) -> None:
        """Serve them as part of ``app``."""
        app.router.add_get("/v1/watches", self._list)
        app.router.add_get("/v1/watches/{name}", self._show)
        app.router.add_put("/v1/watches/{name}", self._put)
        app.router.add_delete("/v1/watches/{name}", self._delete)
        app.router.add_post("/v1/watches/{name}/rollback", self._rollback)
        app.router.add_post("/v1/watches/{name}/resume", self._resume)

    @answers(WatchList)
    async def _list(self, _request: web.Request) -> web.Response:
        reports = tuple(map(_report, self._watches.reports()))
        listed = WatchList(reports, tuple(self._watches.patterns()))
        return web.json_response(listed.to_fields())

    @answers(REPORT, errors=(InvalidSource, NotFound))
    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._document(_name(request)))

    @answers(WatchRule, errors=(InvalidSource, PolicyDenied))
    @takes(WatchBody)
    async def _put(self, request: web.Request, body: WatchBody) -> web.Response:
        name = self._administered(request, "watching it")
        rule = WatchRule.parse({**body.keys, "name": name})
        if rule.gate is not None and peer_of(request.transport).uid not in (0, os.geteuid()):
            raise PolicyDenied(
                "a gate is a command that the daemon's user runs, so only that user may set one",
                source=f"watch:{name}",
                hint="Ask root, or put the watch into the configuration file",
            )
        await self._watches.put(rule)
        return web.json_response(rule.to_fields())

    @answers(WatchRemovalKeys, errors=WATCH_ERRORS)
    async def _delete(self, request: web.Request) -> web.Response:
        name = self._administered(request, "removing it")
        freed = await self._watches.remove(name)
        removal: WatchRemovalKeys = {"name": name, "freed_bytes": freed}
        return web.json_response(removal)

    @answers(REPORT, errors=WATCH_ERRORS)
    @takes(RollbackBody)
    async def _rollback(self, request: web.Request, body: RollbackBody) -> web.Response:
        name = self._administered(request, "rolling it back")
        await self._watches.roll_back(name, body.generation)
        return web.json_response(self._document(name))

    @answers(REPORT, errors=WATCH_ERRORS)
    async def _resume(self, request: web.Request) -> web.Response:
        name = self._administered(request, "resuming it")
        await self._watches.resume(name)
        return web.json_response(self._document(name))

    def _document(self, name: str) -> dict[str, Any]:
        return _report(self._watches.report(name)).to_fields()

    def _administered(self, request: web.Request, what: str) -> str:
        """The watch in the path, for a peer who may do ``what`` to it."""
        name = _name(request)
        self._administrators.check(peer_of(request.transport), what, source=f"watch:{name}")
        return name


def _name(request: web.Request) -> str:
    return check_watch_name(request.match_info["name"])


def _report(report: Report) -> WatchReport:
    return WatchReport(
        rule=report.rule,
        state=report.state,
        detail=report.detail,
        since=datetime.fromtimestamp(report.since, UTC),
        polled=report.polled,
        served=_generation(report.served),
        newest=_generation(report.newest),
        generations=report.numbers,
        is_held=report.is_held,
    )


def _generation(manifest: Manifest | None) -> WatchedGeneration | None:
    if manifest is None or manifest.watched is None:
        return None
    records = {part: manifest.file(filename) for part, filename in FILENAMES.items()}
    return WatchedGeneration(
        directory=manifest.watched.directory,
        generation=manifest.watched.generation,
        revision=manifest.revision,
        published_at=manifest.published_at,
        size=manifest.size,
        sha256={part: record.sha256 for part, record in records.items() if record},
    )
