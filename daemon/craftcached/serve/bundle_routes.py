"""HTTP for bundles: ``/v1/bundles``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import ClientError, web

from craftcache.daemon.administration import ImportedModel
from craftcache.errors import (
    IntegrityError,
    InvalidSource,
    PolicyDenied,
    StorageFull,
    UnsafeCheckpoint,
)

from .openapi import PROBLEM, answers
from .peers import peer_of

if TYPE_CHECKING:
    from craftcached.warm.bundles import BundleImporter

    from .peers import Administrators

__all__ = ["BundleRoutes"]

SENDER_STATUS = 400


class BundleRoutes:
    """Takes in bodies; BundleImporter does the work.

    Args:
        importer: Publishes the models of bundles.
        administrators: The peers that may import.
    """

    def __init__(self, importer: BundleImporter, administrators: Administrators) -> None:
        self._importer = importer
        self._administrators = administrators

    def add_to(self, app: web.Application) -> None:
        """Serve them as part of ``app``."""
        app.router.add_post("/v1/bundles", self._import)

    @answers(
        {"models": [ImportedModel]},
        errors=(IntegrityError, InvalidSource, UnsafeCheckpoint, PolicyDenied, StorageFull),
    )
    async def _import(self, request: web.Request) -> web.Response:
        self._administrators.check(peer_of(request.transport), "importing a bundle")

        async def read(size: int) -> bytes:
            try:
                return await request.content.read(size)
            except (ClientError, ConnectionError) as error:
                raise IntegrityError("the bundle ended early", hint="Send it again") from error

        try:
            manifests = await self._importer.import_bundle(read)
        except IntegrityError as error:
            # Wrong bytes of an origin make a 502; these are the sender's own, so a 400.
            problem = error.to_problem() | {"status": SENDER_STATUS}
            return web.json_response(problem, status=SENDER_STATUS, content_type=PROBLEM)
        imported = (ImportedModel(each.source, each.revision, each.size) for each in manifests)
        return web.json_response({"models": [model.to_fields() for model in imported]})
