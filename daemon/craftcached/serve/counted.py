"""A WorkerBackend that counts what another grants, and what it refuses."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from craftcache.wire import (
        Follow,
        Generation,
        Identified,
        Identify,
        Load,
        Model,
        Models,
        Progress,
        Resolve,
        Resolved,
        StatusReport,
        Warm,
        Warmed,
    )
    from craftcached.counts import Counts

    from .backend import Opened, WorkerBackend
    from .peers import Peer

__all__ = ["CountedBackend"]

OWN_FAULT = "OwnFault"
"""In the place of a code, for what nobody foresaw."""


class CountedBackend:
    """See WorkerBackend for its methods.

    Args:
        backend: Does the work.
        counts: Where it is counted.
    """

    def __init__(self, backend: WorkerBackend, counts: Counts) -> None:
        self._backend = backend
        self._counts = counts

    def load_nowait(self, request: Load, caller: Peer) -> Opened | None:
        """See WorkerBackend.load_nowait."""
        with self._counting_refusals():
            opened = self._backend.load_nowait(request, caller)
        if opened is not None:
            self._counts.hits += 1
            self._count_bytes(opened)
        return opened

    async def load(self, request: Load, caller: Peer, report: Callable[[Progress], None]) -> Opened:
        """See WorkerBackend.load."""
        with self._counting_refusals():
            opened = await self._backend.load(request, caller, report)
        self._counts.misses += 1
        self._count_bytes(opened)
        return opened

    async def resolve(
        self, request: Resolve, caller: Peer, report: Callable[[Progress], None]
    ) -> Resolved:
        """See WorkerBackend.resolve."""
        with self._counting_refusals():
            return await self._backend.resolve(request, caller, report)

    async def warm(self, request: Warm, caller: Peer, report: Callable[[Progress], None]) -> Warmed:
        """See WorkerBackend.warm."""
        with self._counting_refusals():
            warmed = await self._backend.warm(request, caller, report)
        for result in warmed.results:
            if result.error is not None:
                self._counts.refusals[result.error.code] += 1
        return warmed

    async def status(self, caller: Peer) -> StatusReport:
        """See WorkerBackend.status."""
        with self._counting_refusals():
            return await self._backend.status(caller)

    async def models(self, request: Models, caller: Peer) -> Iterable[Model]:
        """See WorkerBackend.models."""
        with self._counting_refusals():
            return await self._backend.models(request, caller)

    async def identify(self, request: Identify, caller: Peer) -> Identified:
        """See WorkerBackend.identify."""
        with self._counting_refusals():
            return await self._backend.identify(request, caller)

    async def follow(self, request: Follow, caller: Peer) -> Generation:
        """See WorkerBackend.follow."""
        with self._counting_refusals():
            return await self._backend.follow(request, caller)

    def _count_bytes(self, opened: Opened) -> None:
        self._counts.bytes_served += sum(file.size for file in opened.loaded.files)

    @contextlib.contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        try:
            yield
        except CraftcacheError as error:
            self._counts.refusals[error.code] += 1
            raise
        except Exception:
            self._counts.refusals[OWN_FAULT] += 1
            raise
