"""The service in the worker socket's terms: messages in, messages and descriptors out."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError
from craftcache.sources import FILENAMES
from craftcache.wire import (
    Generation,
    Identified,
    Loaded,
    Model,
    Resolved,
    ServedFile,
    StatusReport,
    Warmed,
    WarmResult,
)

from .backend import Opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.wire import Follow, Identify, Load, Models, Progress, Resolve, Warm
    from craftcached.service import Service
    from craftcached.status import ModelState
    from craftcached.store.opener import OpenedModel

    from .peers import Peer

__all__ = ["ServiceBackend"]


class ServiceBackend:
    """Grants workers' requests by a Service; a WorkerBackend.

    Args:
        service: What does the work.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def load_nowait(self, request: Load, caller: Peer) -> Opened | None:  # noqa: ARG002  # protocol
        """See WorkerBackend.load_nowait."""
        opened = self._service.open_nowait(request.source, request.filenames)
        return None if opened is None else _opened(opened, request.source)

    async def load(
        self,
        request: Load,
        caller: Peer,  # noqa: ARG002  # protocol
        report: Callable[[Progress], None],
    ) -> Opened:
        """See WorkerBackend.load."""
        opened = await self._service.open(request.source, request.filenames, report)
        return _opened(opened, request.source)

    async def resolve(
        self,
        request: Resolve,
        caller: Peer,  # noqa: ARG002  # protocol
        report: Callable[[Progress], None],
    ) -> Resolved:
        """See WorkerBackend.resolve."""
        path, status = await self._service.resolve(request.source, request.filename, report)
        return Resolved(path, status.st_dev, status.st_ino)

    async def warm(
        self,
        request: Warm,
        caller: Peer,  # noqa: ARG002  # protocol
        report: Callable[[Progress], None],
    ) -> Warmed:
        """See WorkerBackend.warm."""

        async def one(source: str) -> WarmResult:
            try:
                warmed = await self._service.warm(
                    source,
                    request.filenames,
                    report,
                    resident=request.resident,
                    pair_only=request.pair_only,
                )
            except CraftcacheError as error:
                return WarmResult(error=error)
            return WarmResult(
                revision=warmed.manifest.revision,
                bytes_fetched=warmed.bytes_fetched,
                bytes_reused=warmed.bytes_reused,
                resident_bytes=warmed.resident_bytes,
            )

        return Warmed(tuple(await asyncio.gather(*map(one, request.sources))))

    async def status(self, caller: Peer) -> StatusReport:  # noqa: ARG002  # protocol
        """See WorkerBackend.status."""
        return StatusReport(asdict(await self._service.status()))

    async def models(self, request: Models, caller: Peer) -> Iterable[Model]:  # noqa: ARG002
        """See WorkerBackend.models."""
        models = await self._service.models()
        return [_model(state) for state in models if state.manifest.source > request.after]

    async def identify(self, request: Identify, caller: Peer) -> Identified:  # noqa: ARG002
        """See WorkerBackend.identify."""
        return Identified(self._service.watches.find(request.device, request.inode) or "")

    async def follow(self, request: Follow, caller: Peer) -> Generation:  # noqa: ARG002
        """See WorkerBackend.follow."""
        served = await self._service.watches.wait_other(request.name, request.after)
        return _generation(request.name, served)


def _model(state: ModelState) -> Model:
    manifest = state.manifest
    return Model(
        manifest.source,
        manifest.revision,
        tuple(_served(record, has_index=False) for record in state.files),
        resident_bytes=state.resident_bytes,
        is_pinned=state.pin is not None,
        is_locked=state.pin is not None and state.pin.is_locked,
        needs=state.needs,
        unmet=manifest.unmet,
        is_needed_only=manifest.needed_only,
    )


def _generation(name: str, served: Manifest) -> Generation:
    if served.watched is None:
        raise CraftcacheError("the cache says not what was watched", source=served.source)
    records = {part: served.file(filename) for part, filename in FILENAMES.items()}
    digests = {part: record.sha256 for part, record in records.items() if record is not None}
    return Generation(name, served.watched.generation, digests, Path(served.watched.directory))


def _opened(model: OpenedModel, source: str) -> Opened:
    files = tuple(_served(record, has_index=True) for record in model.records)
    pairs = zip(model.blobs, model.indexes, strict=True)
    descriptors = [descriptor for pair in pairs for descriptor in pair]
    return Opened(Loaded(source, model.manifest.revision, files), descriptors)


def _served(record: FileRecord, *, has_index: bool) -> ServedFile:
    return ServedFile(
        filename=record.filename,
        sha256=record.sha256,
        size=record.size,
        origin=record.origin,
        verified_at=record.verified_at.timestamp(),
        has_index=has_index,
    )
