"""HTTP for watches: ``/v1/watches``."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from craftcache.daemon.administration import WatchedGeneration, WatchList, WatchReport
from craftcache.errors import PolicyDenied
from craftcache.sources import FILENAMES, check_watch_name
from craftcache.watch_rule import WatchRule

from .bodies import body_fields
from .peers import peer_of

if TYPE_CHECKING:
    from craftcache.cache.manifest import Manifest
    from craftcached.watch import Report, Watches

    from .peers import Administrators

__all__ = ["WatchRoutes"]

EXAMPLE = '{"directory": "/runs/a/export", "settle": 10, "marker": null, "gate": null, "keep": 2}'
ROLLBACK_EXAMPLE = '{"generation": 3}'


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

    async def _list(self, _request: web.Request) -> web.Response:
        reports = tuple(map(_report, self._watches.reports()))
        listed = WatchList(reports, tuple(self._watches.patterns()))
        return web.json_response(listed.to_fields())

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._document(_name(request)))

    async def _put(self, request: web.Request) -> web.Response:
        name = self._administered(request, "watching it")
        rule = WatchRule.parse((await body_fields(request, EXAMPLE)).whole | {"name": name})
        if rule.gate is not None and peer_of(request.transport).uid not in (0, os.geteuid()):
            raise PolicyDenied(
                "a gate is a command that the daemon's user runs, so only that user may set one",
                source=f"watch:{name}",
                hint="Ask root, or put the watch into the configuration file",
            )
        await self._watches.put(rule)
        return web.json_response(rule.to_fields())

    async def _delete(self, request: web.Request) -> web.Response:
        name = self._administered(request, "removing it")
        return web.json_response({"name": name, "freed_bytes": await self._watches.remove(name)})

    async def _rollback(self, request: web.Request) -> web.Response:
        name = self._administered(request, "rolling it back")
        body = await body_fields(request, ROLLBACK_EXAMPLE, is_optional=True)
        number = body.optional_integer("generation")
        if number == 0:
            raise body.refusal("'generation' is no number from 1")
        await self._watches.roll_back(name, number)
        return web.json_response(self._document(name))

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
