"""HTTP for the models of the cache: ``/v1/models``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypedDict

from aiohttp import web

from craftcache.cache.manifest import Manifest
from craftcache.dependencies import DependencyState  # noqa: TC001  # for schema_of
from craftcache.errors import InvalidSource, NotFound

from .bodies import moment_text
from .openapi import answers
from .retention_routes import source_in

if TYPE_CHECKING:
    from craftcached.service.inventory import Inventory
    from craftcached.status import ModelState

__all__ = ["ModelRoutes", "PublishedKeys", "published_fields"]

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


class ModelKeys(TypedDict):
    """What is said of a cached model beside its manifest, at this moment."""

    resident_bytes: int | None
    pinned: bool
    locked: bool
    last_used_at: str | None
    pinned_until: str | None
    held_until: str | None
    needs: list[DependencyState]


MODEL = (Manifest, PublishedKeys, ModelKeys)


class ModelRoutes:
    """Encodes answers; the Inventory knows the models.

    Args:
        inventory: Describes models.
    """

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    def add_to(self, app: web.Application) -> None:
        """Serve them as part of ``app``."""
        app.router.add_get("/v1/models", self._list)
        app.router.add_get(MODELS + "{source:.+}", self._show)

    @answers({"models": [MODEL]})
    async def _list(self, _request: web.Request) -> web.Response:
        models = await self._inventory.models()
        return web.json_response({"models": [_state(model) for model in models]})

    @answers(MODEL, errors=(InvalidSource, NotFound))
    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(_state(await self._inventory.model(source_in(request, MODELS))))


def published_fields(manifest: Manifest) -> dict[str, Any]:
    """A published model as JSON has it: its manifest, and what is said beside it."""
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
    return published_fields(state.manifest) | {**beside, "needs": needs}
