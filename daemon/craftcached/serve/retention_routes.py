"""Routes for what stays in the cache and what is removed: pins, evictions, pruning, the room."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict
from urllib.parse import unquote

from aiohttp import web

from craftcache.daemon.administration import Eviction, Pruning, Removal
from craftcache.daemon.room import RoomReport
from craftcache.errors import InvalidSource, NotFound, PolicyDenied
from craftcache.sources import parse

from .bodies import EvictBody, PinBody, PruneBody, moment_text, takes
from .openapi import answers
from .peers import peer_of

if TYPE_CHECKING:
    from craftcached.retention import Retention

    from .peers import Administrators

__all__ = ["RetentionRoutes", "source_in"]

MODELS = "/v1/models/"
PINS = "/v1/pins/"


class PinKeys(TypedDict):
    """How a model is kept."""

    source: str
    pinned: bool
    locked: bool
    expires_at: str | None


def source_in(request: web.Request, under: str) -> str:
    """The source in the path as it was sent: percent-encoded, or bare with its query behind it."""
    text = request.raw_path.partition(under)[2]
    return text if "://" in text else unquote(text)


class RetentionRoutes:
    """Decodes requests and encodes answers; Retention does the work.

    Args:
        retention: Removes and keeps models.
        administrators: The peers that may.
    """

    def __init__(self, retention: Retention, administrators: Administrators) -> None:
        self._retention = retention
        self._administrators = administrators

    def add_to(self, app: web.Application) -> None:
        """Serve them as part of ``app``."""
        app.router.add_delete(MODELS + "{source:.+}", self._delete)
        app.router.add_put(PINS + "{source:.+}", self._pin)
        app.router.add_delete(PINS + "{source:.+}", self._unpin)
        app.router.add_post("/v1/evict", self._evict)
        app.router.add_post("/v1/prune", self._prune)
        app.router.add_get("/v1/room", self._room)

    @answers(Removal, errors=(InvalidSource, NotFound, PolicyDenied))
    async def _delete(self, request: web.Request) -> web.Response:
        source, _ = self._administered(request, MODELS, "removing it")
        return web.json_response((await self._retention.remove(source)).to_fields())

    @answers(PinKeys, errors=(InvalidSource, NotFound, PolicyDenied))
    @takes(PinBody)
    async def _pin(self, request: web.Request, body: PinBody) -> web.Response:
        source, shown = self._administered(request, PINS, "pinning it")
        pin = await self._retention.pin(source, lock=body.lock, expires_in=body.expires_in)
        kept: PinKeys = {
            "source": shown,
            "pinned": True,
            "locked": pin.is_locked,
            "expires_at": moment_text(pin.expires_at),
        }
        return web.json_response(kept)

    @answers(PinKeys, errors=(InvalidSource, NotFound, PolicyDenied))
    async def _unpin(self, request: web.Request) -> web.Response:
        source, shown = self._administered(request, PINS, "unpinning it")
        await self._retention.unpin(source)
        kept: PinKeys = {"source": shown, "pinned": False, "locked": False, "expires_at": None}
        return web.json_response(kept)

    @answers((Eviction, {"dry_run": bool}), errors=(InvalidSource, PolicyDenied))
    @takes(EvictBody)
    async def _evict(self, request: web.Request, body: EvictBody) -> web.Response:
        self._administrators.check(peer_of(request.transport), "making room")
        eviction = await self._retention.evict(body.bytes, dry_run=body.dry_run)
        return web.json_response(eviction.to_fields() | {"dry_run": body.dry_run})

    @answers((Pruning, {"dry_run": bool}), errors=(InvalidSource, PolicyDenied))
    @takes(PruneBody)
    async def _prune(self, request: web.Request, body: PruneBody) -> web.Response:
        self._administrators.check(peer_of(request.transport), "pruning")
        pruning = await self._retention.prune(body.filters, dry_run=body.dry_run)
        return web.json_response(pruning.to_fields() | {"dry_run": body.dry_run})

    def _administered(self, request: web.Request, under: str, what: str) -> tuple[str, str]:
        """The source in the path, as named and as shown, for a peer who may do ``what`` to it."""
        source = source_in(request, under)
        shown = parse(source).shown
        self._administrators.check(peer_of(request.transport), what, source=shown)
        return source, shown

    @answers(RoomReport)
    async def _room(self, _request: web.Request) -> web.Response:
        return web.json_response((await self._retention.room()).to_fields())
